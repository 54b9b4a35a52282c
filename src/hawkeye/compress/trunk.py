"""The leading layers from which pruning has cut nothing: computed once for both networks, and not trained.

What is cut is cut where it hurts least, and in a small detector that is behind the backbone: there a step of recovery
has half of its work to repeat what the teacher has just done, and to carry gradients back to weights that are right as
they are. On yolov8n pruned to 70 % six minutes of one core held 255 steps instead of 141, and ended at a held-out loss
of 1.27 instead of 1.60 (docs/results/yolov8n-coco-sample.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn


def untouched(student: nn.Module, teacher: nn.Module) -> int:
    """Number of leading layers whose weights have the same names and shapes in both; never the head.

    Their values may differ: those that read maps of another activation are fitted to them (`reconstruct`).
    """
    for count, (mine, theirs) in enumerate(zip(student.model[:-1], teacher.model[:-1], strict=False)):
        ours, wanted = mine.state_dict(), theirs.state_dict()
        if ours.keys() != wanted.keys() or any(ours[name].shape != value.shape for name, value in wanted.items()):
            return count
    return len(student.model) - 1


class SharedTrunk:
    """Gives the student the teacher's own leading layers for the time of its training.

    Args:
        student: changed in place, until `release_`.
        original: the teacher with BatchNorm folded, frozen.
        length: how many layers; see `untouched`.

    Attributes:
        maps: names of the modules of the student whose outputs the teacher's other layers start from.
    """

    def __init__(self, student: nn.Module, original: nn.Module, length: int) -> None:
        self._original, self._length = original, length
        self._own = list(student.model[:length])
        for index in range(length):
            student.model[index] = original.model[index]
        read = {source for layer in original.model[length:] for source in _sources(layer) if source >= 0}
        self.maps = {f"model.{index}": index for index in sorted(read | {length - 1}) if index < length}

    def __contains__(self, name: str) -> bool:
        """Whether a module, such as "model.8.cv2", lies in it."""
        return int(name.split(".")[1]) < self._length

    def teach(self, found: Mapping[str, Tensor]) -> Any:
        """What the teacher gives, from what the student's forward pass has left in `maps`."""
        outputs: dict[int, Any] = {index: found[name] for name, index in self.maps.items()}
        last = outputs[self._length - 1]
        for index, layer in enumerate(self._original.model[self._length :], self._length):
            inputs = [last if source == -1 else outputs[source] for source in _sources(layer)]
            outputs[index] = last = layer(inputs if isinstance(layer.f, list) else inputs[0])
        return last

    def release_(self, student: nn.Module) -> None:
        """The student, or a copy of it, has its own layers again."""
        for index, layer in enumerate(self._own):
            student.model[index] = layer


@contextmanager
def outputs_of(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """What the named modules of a model give while the block runs, by name. Leaves nothing on the model."""
    found: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        found[name] = output

    handles = [model.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _sources(layer: nn.Module) -> list[int]:
    """Indices of the layers that one reads, in Ultralytics' numbering; -1 is the one before."""
    source: Any = layer.f
    return source if isinstance(source, list) else [source]
