"""What a convolution costs on this CPU, by its shape: measured once, kept in the user's cache, read back by pruning.

Latency-aware pruning by such a table: Shen et al., HALP, arXiv 2110.10811. Kernels work in blocks of 16 channels, so
costs are stairs: 24 channels cost as much as 32 or more. All multiples of 8 are measured up to 96 and all of 16 up to
256. Beyond, every 32nd width is measured and those between are interpolated: one more block is a sixteenth there. A
width that is not on the list counts as the next multiple of 16, which it is padded to.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from hawkeye import environment
from hawkeye.artifact import write_json
from hawkeye.compress.layer_models import Precision, Shape, layers_ms, version
from hawkeye.errors import ConfigError
from hawkeye.progress import progress, say

RUNS = 12  # each layer is timed as often, and the least counts
_AGAIN = 2  # later passes over the layers that are doubtful
_TOLERANCE = 0.97  # differences below are noise
_COMPILE = 40  # effort of compiling one layer, in millions of multiply-accumulates of measuring it
_SCHEMA = 1


def grid(most: int, precision: Precision = "int8") -> tuple[int, ...]:
    """Widths up to `most` that are measured, ascending; `most` is one of them.

    FP32 is there to compare with, not to choose widths by, so fewer are measured.
    """
    # (up to this width, every so many channels)
    steps = ((96, 8), (256, 16), (most, 32)) if precision == "int8" else ((64, 16), (most, 64))
    widths: list[int] = []
    for limit, step in steps:
        widths += range((widths[-1] if widths else 0) + step, limit + 1, step)
    return tuple(sorted({width for width in widths if width < most} | {most}))


class Table:
    """Milliseconds by shape for one precision and number of threads on this CPU; grows as it is asked for more.

    Args:
        precision: "int8" or "fp32".
        threads: of the runtime.
        folder: where it is kept between runs; None keeps it in memory.
    """

    def __init__(self, precision: Precision, threads: int, folder: Path | None) -> None:
        self.precision, self.threads = precision, threads
        self.path = folder / f"layers-{precision}-{threads}-openvino-{version()}.json" if folder else None
        self._ms: dict[Shape, float] = {}
        self._axes: dict[tuple[str, int, int, int, int], tuple[list[int], dict[int, list[int]]]] = {}
        self._ms.update(_read(self.path))

    def __len__(self) -> int:
        return len(self._ms)

    def __contains__(self, shape: Shape) -> bool:
        return shape in self._ms

    def get(self, shape: Shape, default: float) -> float:
        """What was measured of exactly this layer."""
        return self._ms.get(shape, default)

    @property
    def sha256(self) -> str:
        """Of all that it holds: what was chosen by it was chosen by these very figures."""
        rows = sorted((*shape, ms) for shape, ms in self._ms.items())
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def items(self) -> list[tuple[Shape, float]]:
        """All that was measured, in order of shapes."""
        return sorted(self._ms.items())

    def put(self, found: dict[Shape, float]) -> None:
        """Take in measured milliseconds, and keep them."""
        self._ms |= found
        self._axes.clear()
        if self.path is not None:
            write_json(self.path, {"schema_version": _SCHEMA, "cpu": environment.cpu_model(), "openvino": version(),
                                   "threads": self.threads, "precision": self.precision,
                                   "layers_ms": [[*shape, ms] for shape, ms in self.items()]})  # fmt: skip

    def ms(self, shape: Shape) -> float:
        """Milliseconds of a layer: measured, or between the nearest widths that were.

        Raises:
            ConfigError: nothing like it was measured.
        """
        if (known := self._ms.get(shape)) is not None:
            return known
        cins, couts = self._axis((shape.kind, shape.kernel, shape.stride, shape.h, shape.w))
        if shape.kind == "depthwise":  # as many channels out as in
            low, high, share = _between(cins, shape.cin, shape)
            a, b = (self._ms[shape._replace(cin=width, cout=width)] for width in (low, high))
            return a + share * (b - a)
        # Layers of one family may have been measured up to different widths.
        cins = [cin for cin in cins if couts[cin][-1] > shape.cout - 16]
        low, high, share = _between(cins, shape.cin, shape)
        total = 0.0
        for cin, weight in ((low, 1 - share), (high, share)):
            if weight:
                left, right, part = _between(couts[cin], shape.cout, shape)
                a, b = (self._ms[shape._replace(cin=cin, cout=c)] for c in (left, right))
                total += weight * (a + part * (b - a))
        return total

    def _axis(self, family: tuple[str, int, int, int, int]) -> tuple[list[int], dict[int, list[int]]]:
        if family not in self._axes:
            couts: dict[int, list[int]] = defaultdict(list)
            for s in sorted(self._ms):
                if (s.kind, s.kernel, s.stride, s.h, s.w) == family:
                    couts[s.cin].append(s.cout)
            self._axes[family] = sorted(couts), couts
        return self._axes[family]


def wanted(layers: Iterable[Shape], precision: Precision, fixed: Iterable[Shape] = ()) -> list[Shape]:
    """Every shape to be measured so that these layers can be judged at all smaller widths.

    Args:
        layers: a network's layers at full width.
        precision: decides the grid.
        fixed: those of them whose output channels stay, or whose input does: (cin == 3).
    """
    kept = set(fixed)
    found: set[Shape] = set()
    for layer in layers:
        cins = (layer.cin,) if layer.cin <= 3 else grid(layer.cin, precision)
        if layer.kind == "depthwise":
            found |= {layer._replace(cin=width, cout=width) for width in cins}
            continue
        couts = (layer.cout,) if layer in kept else grid(layer.cout, precision)
        found |= {layer._replace(cin=cin, cout=cout) for cin in cins for cout in couts}
    return sorted(found)


def measure_(table: Table, shapes: Iterable[Shape], *, runs: int = RUNS) -> int:
    """Measure what the table does not hold yet; returns how many that were. Can be killed and goes on.

    A layer that took longer than a wider one may have met another process at work, for longer than its runs last. Such
    layers are measured again later, and the least counts; stairs of the kernels are still there then.
    """
    shapes = list(shapes)
    missing = [shape for shape in shapes if shape not in table]
    if not missing:
        return 0
    about = f"{table.precision}, {table.threads} threads"
    say(f"measuring {len(missing)} layers in {about}; kept for later runs")
    _pass_(table, missing, f"layers in {table.precision}", runs)
    fresh = set(missing)
    for number in range(1, _AGAIN + 1):
        doubtful = [shape for shape in suspects(table, shapes) if shape in fresh]
        if doubtful:
            _pass_(table, doubtful, f"layers in {table.precision}, {len(doubtful)} again, {number} of {_AGAIN}", runs)
    return len(missing)


def suspects(table: Table, shapes: Iterable[Shape]) -> list[Shape]:
    """Measured layers that take longer than one with as many or more channels in and out."""
    families: dict[tuple[str, int, int, int, int], list[Shape]] = defaultdict(list)
    for shape in shapes:
        families[(shape.kind, shape.kernel, shape.stride, shape.h, shape.w)].append(shape)
    found = []
    for family in families.values():
        for shape in family:
            limit = table.ms(shape) * _TOLERANCE
            if any(o.cin >= shape.cin and o.cout >= shape.cout and table.ms(o) < limit for o in family if o != shape):
                found.append(shape)
    return sorted(found)


def _pass_(table: Table, shapes: Iterable[Shape], title: str, runs: int) -> None:
    groups: dict[tuple[int, ...], list[Shape]] = defaultdict(list)
    for shape in shapes:
        groups[(shape.kernel, shape.stride, shape.cin, shape.h, shape.w)].append(shape)
    # A bar of equal steps would lie: a layer's time goes with its multiply-accumulates, and compiling one with nothing.
    effort = {key: sum(s.h * s.w * (1 if s.kind == "depthwise" else s.cin) * s.cout * s.kernel**2 / 1e6 + _COMPILE
                       for s in group) for key, group in groups.items()}  # fmt: skip
    fresh: dict[Shape, float] = {}
    with progress(title, round(sum(effort.values()))) as bar:
        for number, (key, group) in enumerate(groups.items(), 1):
            fresh |= layers_ms(group, table.precision, threads=table.threads, runs=runs)
            if number % 20 == 0 or number == len(groups):
                table.put({shape: min(ms, table.get(shape, ms)) for shape, ms in fresh.items()})
                fresh = {}
            bar.advance(effort[key], note=f"{number} of {len(groups)} inputs")


def open_table(precision: Precision, threads: int = 0) -> Table:
    """The table of this machine, as far as it has been measured."""
    return Table(precision, threads or environment.cpu_count(), environment.cache_dir("layers"))


def _read(path: Path | None) -> list[tuple[Shape, float]]:
    """What was kept; a damaged or foreign file is measured again."""
    if path is None or not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        if content["schema_version"] != _SCHEMA or content["cpu"] != environment.cpu_model():
            return []
        rows = [(Shape(str(row[0]), *map(int, row[1:7])), float(row[7])) for row in content["layers_ms"]]
        return [(shape, ms) for shape, ms in rows if 0 < ms < float("inf")]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return []


def _padded(width: int) -> int:
    return -(-width // 16) * 16


def _between(axis: list[int], width: int, shape: Shape) -> tuple[int, int, float]:
    """Measured neighbours of a width, and how far it lies from the lower towards the upper one."""
    width = width if width in axis else _padded(width)
    place = bisect.bisect_left(axis, width)
    if place == len(axis) and axis and width - axis[-1] < 16:  # full widths that are no multiple of 16
        return axis[-1], axis[-1], 0.0
    if place == len(axis):
        raise ConfigError("the table does not hold such a layer", got=tuple(shape),
                          expected="a shape that the network can take", mend="hawkeye profile MODEL")  # fmt: skip
    if axis[place] == width or place == 0:
        return axis[place], axis[place], 0.0
    low, high = axis[place - 1], axis[place]
    return low, high, (width - low) / (high - low)
