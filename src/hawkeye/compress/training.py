"""One training loop for recovery, training from scratch and quantization-aware training.

It is judged on held-out training pictures, goes back to the last good weights when it diverges, and can be killed at
any moment: at most `config.save_every` of work is lost. The pictures of a step depend on the seed and the step only,
so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import copy
import io
import math
import os
import random
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hawkeye import artifact
from hawkeye.compress.device import give_way, keep_memory, loaders
from hawkeye.compress.optimizer import RelativeMuon
from hawkeye.config import RecoverConfig
from hawkeye.errors import ConfigError, DivergenceError, MissingExtraError
from hawkeye.progress import judged, progress, say

try:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
except ImportError as error:  # pragma: no cover - depends on the installation
    raise MissingExtraError("compress", "lightning_fabric") from error

_MAX_ROLLBACKS = 3  # training that diverges once more is given up
# Losses this many times their running mean, so many in a row, are divergence; one by itself is a hard picture.
_SPIKE, _SPIKES = 4.0, 3
# So is a judgement this many times the start's, where the start must not be lost. A smaller fall has until the second
# half: on the way to something better the judgement rises by a fifth by itself, while the rate is at its peak.
_WORSE = 1.5
_CALM = 0.1  # part of the run for which the head is frozen after a roll-back, without a rescue

Batch = dict[str, Any]
Objective = Callable[[nn.Module, Batch], Tensor]
# Looks at a network that has diverged; what it returns changes a network that has been rolled back.
Rescue = Callable[[nn.Module], Callable[[nn.Module], None]]
# Sees a network that is not to be changed, and the point of the curve that it has just made.
Look = Callable[[nn.Module, dict[str, Any]], None]


@dataclass(frozen=True)
class Source:
    """A data set and how its samples are put together."""

    dataset: Any
    collate: Callable[[list[Any]], Batch]


class _Keyed(torch.utils.data.Dataset[Any]):
    """Samples whose random augmentation depends on (seed, step, place) only."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Any:
        seed, index = key
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` writes a traceback for GPUs to come: 0.7 ms
        return self._dataset[index]


def _batches(
    size: int, batch: int, seed: int, first_step: int, rank: int, world: int
) -> Iterator[list[tuple[int, int]]]:
    """Keys of each step's samples on this rank, without end; every picture once an epoch over all ranks.

    A step's pictures are the same however many ranks share them, so a run can go on with another number of them.
    """
    per_epoch = max(1, size // batch)
    step = first_step
    while True:
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(size)
        yield [(hash((seed, step, i)) % 2**31, int(order[(place * batch + i) % size]))
               for i in range(rank, batch, world)]  # fmt: skip
        step += 1


def fit_(
    model: nn.Module,
    source: Source,
    objective: Objective,
    judge: Callable[[nn.Module], float],
    config: RecoverConfig,
    *,
    state: Path,
    title: str,
    exact: Collection[str] = (),
    rescue: Rescue | None = None,
    look: Look | None = None,
    notes: list[Any] | None = None,
) -> tuple[list[dict[str, Any]], float, float]:
    """Train `model` in place; it ends with the best averaged weights seen at any check.

    Args:
        model: parameters that should move must ask for gradients.
        source: training pictures.
        objective: loss of a batch.
        judge: lower is better; sees the averaged weights in eval mode, at the start and at every check.
        config: length, rates, guards.
        state: file to resume from; removed by the caller when its stage is done.
        title: of the progress bar.
        exact: names of the state that the averaged weights take over as it is.
        rescue: given, a lasting fall of the judgement below the start's counts as divergence as well
            (`_Loop.has_fallen`), and after each roll-back the network is changed by it.
        look: for studies; is shown the averaged weights with each new point of the curve.
        notes: plain values that the caller adds to; saved with the state, and read back from it.

    Returns:
        The curve (one entry a check), the best and the starting judgement.

    Raises:
        DivergenceError: after three roll-backs it diverged once more, and nothing is better than the start.
    """
    keep_memory()
    world = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # What a rescue takes out of use gets no gradient any more.
    ddp: Any = DDPStrategy(find_unused_parameters=True) if rescue is not None else "ddp"
    fabric = Fabric(accelerator=config.device, devices=local, num_nodes=max(1, world // local),
                    strategy=ddp if world > 1 else "auto", precision="bf16-mixed")  # fmt: skip
    if world > 1:
        if config.batch < world:
            raise ConfigError("fewer pictures a step than processes", got=f"batch {config.batch}, {world} processes",
                              expected="at least one picture each", mend="raise the batch")  # fmt: skip
        fabric.launch()
    loop = _Loop(fabric, model, config, exact, rescue, [] if notes is None else notes)
    loop.resume(state)
    if loop.start_score is None:
        loop.start_score = loop.best_score = float(fabric.broadcast(judge(loop.average)))
        loop.record(loop.start_score, math.nan, look)
    data = torch.utils.data.DataLoader(
        _Keyed(source.dataset),
        batch_sampler=_Endless(lambda: _batches(len(source.dataset), config.batch, config.seed, loop.step,
                                                fabric.global_rank, world)),
        collate_fn=source.collate, num_workers=loaders(config.device), worker_init_fn=give_way,
        prefetch_factor=6)  # fmt: skip
    total = config.steps or config.budget
    with progress(title, total, done=min(loop.done(), total)) as bar:
        before = loop.done()
        batches = iter(data)
        while loop.progress() < 1:
            loss = loop.update(objective, batches)
            lost = loop.diverged(loss)
            if not lost and (loop.progress() >= loop.next_check() or loop.progress() >= 1):
                # One figure for all ranks, or one could go back alone and leave the others waiting.
                score = float(fabric.broadcast(judge(loop.average)))
                loop.record(score, loss, look)
                judged(min(1.0, loop.progress()), score)
                lost = rescue is not None and loop.progress() < 1 and loop.has_fallen()
                if lost:
                    loop.curve[-1]["rolled_back"] = True
                else:
                    loop.keep_if_better(score)
            if lost:
                if not loop.roll_back():
                    break
                continue
            loop.save(state, fabric.is_global_zero)
            bar.advance(loop.done() - before, f"loss {loss:.3f}, held out {loop.curve[-1]['held_out']:.4f}")
            before = loop.done()
    if loop.gave_up and loop.best_score >= loop.start_score:
        raise DivergenceError("training diverges and nothing better than the start was found",
                              got=f"{_MAX_ROLLBACKS} roll-backs, last rate {loop.rate:.1e}",
                              mend="a lower lr in a recipe, under [recover] or [quantize]")  # fmt: skip
    model.load_state_dict(loop.best)
    return loop.curve, loop.best_score, loop.start_score


class _Endless:
    def __init__(self, make: Callable[[], Iterator[list[tuple[int, int]]]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._make()


class _Loop:
    """Weights, optimizer and bookkeeping of one training run."""

    def __init__(self, fabric: Any, model: nn.Module, config: RecoverConfig, exact: Collection[str],
                 rescue: Rescue | None, notes: list[Any]) -> None:  # fmt: skip
        self.config, self.fabric, self.exact, self.rescue, self.notes = config, fabric, exact, rescue, notes
        model.to(fabric.device, memory_format=torch.channels_last)
        self.raw = model
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        kind = RelativeMuon if config.optimizer == "muon" else torch.optim.AdamW
        optimizer = kind(_parameter_groups(model), lr=config.lr)
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.step, self.elapsed, self.scale, self.rollbacks, self.spikes = 0, 0.0, 1.0, 0, 0
        self.since, self.mean_loss = 0.0, None  # progress at the last roll-back; of the losses since then
        self.curve: list[dict[str, Any]] = []
        self.start_score: float | None = None
        self.best_score = math.inf
        self.best = _copy(model.state_dict())
        self.good: dict[str, Any] = self._snapshot()
        self.gave_up = False
        self._pairs: list[list[Tensor]] | None = None  # of the averaged weights and the trained ones
        self._saved = time.monotonic()

    @property
    def rate(self) -> float:
        """Learning rate now: warm-up, then cosine, times what divergence has left of it.

        After a roll-back it is warmed up again: the optimizer may know as little of the gradients as at the start.
        """
        part = min(1.0, self.progress())
        warm = min(1.0, (part - self.since + 1e-3) / self.config.warmup) if self.config.warmup else 1.0
        return self.config.lr * self.scale * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))

    def done(self) -> float:
        return float(self.step) if self.config.steps else self.elapsed

    def progress(self) -> float:
        return self.step / self.config.steps if self.config.steps else self.elapsed / max(self.config.budget, 1e-9)

    def next_check(self) -> float:
        return len(self.curve) / self.config.checks

    def update(self, objective: Objective, batches: Iterator[Batch]) -> float:
        """One optimizer step; returns the loss. Waiting for pictures is part of its time."""
        began = time.monotonic()
        batch = next(batches)
        # After a roll-back the trunk goes on alone for a while: the head follows what is before it.
        calm = self.rescue is None and self.rollbacks > 0 and self.progress() < self.since + _CALM
        frozen_head = calm or self.progress() < self.config.head_frozen
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if frozen_head and group["head"] else self.rate
        self.model.train()
        if self.config.freeze_bn:
            for module in self.raw.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        moved = {k: v.to(self.fabric.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        loss = objective(self.model, moved)
        # All ranks judge by the same figures: one that went back or stopped alone would leave the others waiting.
        value = float(self.fabric.all_reduce(loss.detach()))
        if math.isfinite(value):
            self.optimizer.zero_grad()
            self.fabric.backward(loss)
            norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=10.0, error_if_nonfinite=False)
            if norm is not None and not math.isfinite(float(norm)):
                value = math.nan
            else:
                self.optimizer.step()
                self._follow()
        self.step += 1
        self.elapsed = float(self.fabric.broadcast(self.elapsed + time.monotonic() - began))
        return value

    def _follow(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        if self._pairs is None:  # asking both networks for their state takes longer than to average it
            slow, fast = self.average.state_dict(), self.raw.state_dict()
            names = [n for n, value in slow.items() if value.dtype.is_floating_point and n not in self.exact]
            rest = [n for n in slow if n not in set(names)]
            self._pairs = [[network[n] for n in part] for part in (names, rest) for network in (slow, fast)]
        averaged, trained, copies, exact = self._pairs
        with torch.no_grad():
            torch._foreach_lerp_(averaged, trained, 1 - decay)
            torch._foreach_copy_(copies, exact)

    def diverged(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        if self.mean_loss is not None and self.step > 20 and loss > _SPIKE * self.mean_loss:
            self.spikes += 1
        else:
            self.spikes = 0
            self.mean_loss = loss if self.mean_loss is None else 0.95 * self.mean_loss + 0.05 * loss
        return self.spikes == _SPIKES

    def has_fallen(self) -> bool:
        """Whether the newest judgement is a fall below the start that is not just passing.

        It is far below; or, in the second half, in which the rate goes down, it is below and no better than the last.
        """
        assert self.start_score is not None
        before, now = self.curve[-2], self.curve[-1]
        score, last = now["held_out"], before["held_out"]
        if not score <= _WORSE * self.start_score:
            return True
        return self.progress() > 0.5 and not before.get("rolled_back") and score > self.start_score and score >= last

    def roll_back(self) -> bool:
        """Last good weights, half the rate; False when that has been done too often."""
        self.rollbacks += 1
        step, elapsed = self.step, self.elapsed
        change = self.rescue(self.raw) if self.rescue is not None else None
        self._restore(self.good)
        if change is not None:
            change(self.raw)
            change(self.average)
            self._pairs = None
            self.good = self._snapshot()
        self.step, self.elapsed = step, elapsed  # the clock runs on, and the bad batch is not met again
        self.scale *= 0.5
        self.since, self.mean_loss, self.spikes = self.progress(), None, 0
        self.gave_up = self.rollbacks > _MAX_ROLLBACKS
        say("training diverged " + ("once too often: giving up" if self.gave_up else
            f"at step {step}: back to the last good weights, rate halved to {self.rate:.1e}"))  # fmt: skip
        return not self.gave_up

    def keep_if_better(self, score: float) -> None:
        if score < self.best_score:
            self.best_score, self.best = score, _copy(self.average.state_dict())
        assert self.start_score is not None
        # Not amid what may turn out to be divergence; and a roll-back must not end below the start.
        if not self.spikes and (self.rescue is None or score <= self.start_score):
            self.good = self._snapshot()

    def record(self, score: float, loss: float, look: Look | None) -> None:
        self.curve.append({"step": self.step, "seconds": round(self.elapsed, 1), "held_out": score, "lr": self.rate,
                           "loss": None if math.isnan(loss) else loss})  # fmt: skip
        if look is not None:
            look(self.average, self.curve[-1])

    def _snapshot(self) -> dict[str, Any]:
        return {"model": _copy(self.raw.state_dict()), "average": _copy(self.average.state_dict()),
                "optimizer": copy.deepcopy(self.optimizer.state_dict())}  # fmt: skip

    def _restore(self, snapshot: dict[str, Any]) -> None:
        self.raw.load_state_dict(snapshot["model"])
        self.average.load_state_dict(snapshot["average"])
        self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))

    _PLAIN = ("step", "elapsed", "scale", "since", "rollbacks", "mean_loss", "spikes",
              "curve", "start_score", "best_score", "best", "good")  # fmt: skip

    def save(self, path: Path, first: bool) -> None:
        """Write everything now and then, whole or not at all."""
        if first and time.monotonic() - self._saved >= self.config.save_every:
            buffer = io.BytesIO()
            torch.save({"now": self._snapshot(), "notes": self.notes,
                        **{name: getattr(self, name) for name in self._PLAIN}}, buffer)  # fmt: skip
            artifact.write_bytes(path, buffer.getvalue())
            self._saved = time.monotonic()

    def resume(self, path: Path) -> None:
        if path.is_file():
            saved = torch.load(path, map_location=self.fabric.device, weights_only=True)
            self._restore(saved["now"])
            for name in self._PLAIN:
                setattr(self, name, saved[name])
            self.notes[:] = saved.get("notes", [])  # absent where an older program was killed
            say(f"going on at step {self.step}, after {self.elapsed:.0f} s of training")


def first_rank() -> bool:
    """Whether this process is the one that writes; always, unless torchrun started several."""
    return int(os.environ.get("RANK", "0")) == 0


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean over the processes that train together; the value itself where there is one. Passes no gradient."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.detach().clone()
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value


def wait_for_all() -> None:
    """Meet the other processes that torchrun started; after `fit_` only."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trunk and head, each with and without decay (biases and BatchNorm are not decayed)."""
    head = f"model.{len(model.model) - 1}."
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(head), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "head": in_head, "weight_decay": 5e-4 if decayed else 0.0}
        for (in_head, decayed), parameters in groups.items()
    ]
