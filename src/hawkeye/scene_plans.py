"""The scenarios of the drawn videos: who goes where. `scene_videos` draws them and tells what they hold.

| scenario | what is hard |
|---|---|
| crossing | paths that cross each other, and pass beside the ends of the line |
| occlusion | pillars: the line is crossed while nothing can be seen |
| jitter | boxes that tremble on the line, and then go on or turn back |
| reentry | turning back after the line; leaving the picture and coming back |
| crowd | many small objects side by side, in both directions |
| drops | bursts of missing frames, also while the line is crossed |
| traffic | 1080p: far and small, near and large, slow and quick, some coming closer |
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hawkeye.errors import ConfigError
from hawkeye.scene_videos import Actor, SceneVideo
from hawkeye.scenes import NAMES
from hawkeye.track.rules import Line, Point, Rule, Zone

_HIDDEN_S = 0.6  # less than a tracker keeps what it cannot see


class _Plan:
    """What a scenario puts into its video."""

    def __init__(self, seed: int, size: tuple[int, int], seconds: float, fps: float) -> None:
        self.rng = np.random.default_rng([seed, 0])
        self.width, self.height = size
        self.seconds, self.fps = seconds, fps
        self.actors: list[Actor] = []
        self.pillars: list[tuple[int, int, int, int]] = []
        self.rules: tuple[Rule, ...] = ()
        self.dropped: set[int] = set()
        self.unit = self.height / 360  # sizes below are for pictures 360 pixels high

    def px(self, low: float, high: float) -> float:
        """A random length or speed."""
        return float(self.rng.uniform(low, high)) * self.unit

    def area(self, *fractions: float) -> tuple[Point, ...]:
        """Points in pixels from x, y, x, y, … in fractions."""
        return tuple((x * self.width, y * self.height) for x, y in zip(fractions[::2], fractions[1::2], strict=True))

    def gate(self, x: float = 0.5, top: float = 0.0, bottom: float = 1.0, name: str = "gate") -> Line:
        """A line from top to bottom: "in" is to the left."""
        start, end = self.area(x, top, x, bottom)
        return Line(name, start, end)

    def yard(self, left: float = 0.14, top: float = 0.27, right: float = 0.4, bottom: float = 0.97) -> Zone:
        """A zone with a slanting side."""
        return Zone("yard", self.area(left, top, right - 0.06, top, right, bottom, left, bottom))

    def walk(
        self,
        size: float,
        start_s: float,
        speed: float,
        *points: tuple[float, float],
        tremble_px: float = 0.0,
        scale: tuple[float, ...] = (),
    ) -> Actor:
        """Lead a new object along points at a speed in pixels per second; a point given twice is a stop of 2 s."""
        path = np.array(points, np.float64)
        lengths = np.hypot(*np.diff(path, axis=0).T)
        spent = np.where(lengths > 0, lengths / speed, 2.0)
        times = start_s + np.concatenate([[0.0], np.cumsum(spent)])
        scales = np.array(scale or [1.0] * len(path), np.float64)
        actor = Actor(int(self.rng.integers(len(NAMES))), size, times, path, scales, tremble_px)
        self.actors.append(actor)
        return actor

    def across(self, size: float, start_s: float, speed: float, y1: float, y2: float, *, leftwards: bool) -> Actor:
        """Lead a new object from one side of the picture to the other."""
        ends = [(-size, y1), (self.width + size, y2)]
        return self.walk(size, start_s, speed, *(ends[::-1] if leftwards else ends))


def _crossing(plan: _Plan) -> None:
    plan.rules = (plan.gate(top=0.35, bottom=0.99), plan.yard())
    while len(plan.actors) < plan.rng.integers(7, 11):
        y1, y2 = plan.rng.uniform(0.2, 0.96, 2) * plan.height
        size, start = plan.px(30, 70), plan.rng.uniform(0, plan.seconds * 0.4)
        plan.across(size, start, plan.px(110, 200), y1, y2, leftwards=plan.rng.random() < 0.5)
        _keep_clear(plan)


def _occlusion(plan: _Plan) -> None:
    plan.rules = (plan.gate(), plan.yard())
    for middle in (0.27, 0.5, 0.75):
        half = int(plan.px(22, 32))
        at = int(middle * plan.width)
        plan.pillars.append((at - half, 0, at + half, plan.height))
    while len(plan.actors) < plan.rng.integers(5, 8):
        y1 = plan.rng.uniform(0.3, 0.95) * plan.height
        y2 = np.clip(y1 + plan.px(-40, 40), 0.25 * plan.height, 0.95 * plan.height)
        start = plan.rng.uniform(0, plan.seconds * 0.4)
        plan.across(plan.px(28, 50), start, plan.px(110, 190), y1, float(y2), leftwards=plan.rng.random() < 0.5)
        _keep_clear(plan)


def _jitter(plan: _Plan) -> None:
    plan.rules = (plan.gate(), plan.yard(right=0.36))
    lanes = 5
    for lane in plan.rng.permutation(lanes):
        size, leftwards = plan.px(34, 58), plan.rng.random() < 0.5
        y = (lane + 1) / (lanes + 0.1) * plan.height
        away = 1 if leftwards else -1
        near = plan.width / 2 + away * plan.px(0.5, 2)  # short of the line, and over it again and again
        begin = plan.width / 2 + away * (plan.width / 2 + size)
        goal = plan.width - begin if plan.rng.random() < 0.6 else begin
        start = plan.rng.uniform(0, plan.seconds * 0.2)
        plan.walk(
            size, start, plan.px(120, 190), (begin, y), (near, y), (near, y), (goal, y), tremble_px=2.5 * plan.unit
        )


def _reentry(plan: _Plan) -> None:
    plan.rules = (plan.gate(), plan.yard())
    middle, far = plan.width / 2, plan.width
    for number, lane in enumerate(plan.rng.permutation(5)):
        size, speed = plan.px(30, 56), plan.px(150, 210)
        y = (lane + 1) / 5.1 * plan.height
        start = plan.rng.uniform(0, 1.0)
        if number % 3 == 0:  # out of the picture, and back as somebody else
            first = plan.across(size, start, speed, y, y, leftwards=False)
            plan.across(size, first.times[-1] + plan.rng.uniform(1.8, 2.5), speed, y, y, leftwards=True)
        else:  # over the line and back, once or once again
            turns = [(middle + plan.px(60, 120), y), (middle - plan.px(25, 40), y)]
            way = [(-size, y), turns[0], (-size, y)] if number % 3 == 1 else [(-size, y), *turns, (far + size, y)]
            plan.walk(size, start, speed, *way)


def _crowd(plan: _Plan) -> None:
    plan.rules = (plan.gate(), plan.yard(left=0.6, right=0.9, top=0.3))
    while len(plan.actors) < plan.rng.integers(26, 36):
        y1 = plan.rng.uniform(0.12, 0.97) * plan.height
        y2 = np.clip(y1 + plan.px(-25, 25), 0.1 * plan.height, 0.98 * plan.height)
        start = plan.rng.uniform(0, plan.seconds * 0.35)
        plan.across(plan.px(18, 34), start, plan.px(110, 200), y1, float(y2), leftwards=plan.rng.random() < 0.4)
        _keep_clear(plan)


def _drops(plan: _Plan) -> None:
    _crossing(plan)
    count, at = round(plan.seconds * plan.fps), 8
    while at < count:
        length = int(plan.rng.integers(3, 11))
        plan.dropped |= set(range(at, at + length))
        at += length + int(plan.rng.integers(6, 20))


def _traffic(plan: _Plan) -> None:
    plan.rules = (plan.gate(0.35, 0.3, 0.55, "far"), plan.gate(0.6, 0.56, 1.0, "near"),
                  Zone("square", plan.area(0.62, 0.58, 0.9, 0.58, 0.93, 0.985, 0.62, 0.985)))  # fmt: skip
    # Lower edge as a share of the height, size, speed in pixels per second, seconds between two (for 360 pixels).
    lanes = ((0.37, (8, 13), (18, 45), 3.0), (0.44, (11, 17), (30, 110), 3.0), (0.68, (36, 56), (60, 190), 4.5),
             (0.92, (75, 130), (60, 260), 6.0))  # fmt: skip
    for number, (y, sizes, speeds, pause) in enumerate(lanes):
        leftwards, start = number % 2 == 0, -6.0
        while start < plan.seconds:
            level = y * plan.height + plan.px(-2, 2)
            plan.across(plan.px(*sizes), start, plan.px(*speeds), level, level, leftwards=leftwards)
            _keep_clear(plan)
            start += plan.rng.uniform(0.6, 1.4) * pause
    for start in np.arange(plan.rng.uniform(0, 3), plan.seconds, 7.0):  # coming closer
        far, near = plan.area(0.48, 0.36, 0.2, 1.3)
        plan.walk(plan.px(80, 120), float(start), plan.px(70, 120), far, near, scale=(0.12, 1.0))
        _keep_clear(plan)
    plan.actors.sort(key=lambda actor: float(actor.path[:, 1].mean()))


def _keep_clear(plan: _Plan) -> None:
    """Take the last actor back where people would disagree on the truth.

    That is: it passes close to the end of a line or to a corner; it is on an edge when the video begins or ends; or it
    goes along with another one for so long that one of them stays hidden.
    """
    actor, near = plan.actors[-1].within(plan.seconds), 14 * plan.unit
    times = np.arange(actor.times[0], actor.times[-1], 0.04)
    x, y, scale = (np.interp(times, actor.times, a) for a in (*actor.path.T, actor.scale))
    points = np.stack([x, y], 1)
    clear = len(times) > 0
    for rule in plan.rules:
        corners = (rule.start, rule.end) if isinstance(rule, Line) else rule.points
        edges = [corners] if isinstance(rule, Line) else list(zip(corners, (*corners[1:], corners[0]), strict=True))
        clear &= all(np.hypot(*(points - corner).T).min(initial=np.inf) > near for corner in corners)
        clear &= all(_distance(end, *edge) > near for end in actor.path[[0, -1]].tolist() for edge in edges)
    for other in plan.actors[:-1]:
        both = (times >= other.times[0]) & (times <= other.times[-1])
        away = [np.interp(times, other.times, other.path[:, i]) - points[:, i] for i in (0, 1)]
        size = np.maximum(actor.size * scale, other.size * np.interp(times, other.times, other.scale))
        clear &= bool((both & (np.hypot(*away) < 0.7 * size)).sum() * 0.04 < _HIDDEN_S)
    if not clear:
        plan.actors.pop()


def _distance(point: Point, start: Point, end: Point) -> float:
    """From a point to a segment."""
    p, a, b = np.array(point), np.array(start), np.array(end)
    share = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
    return float(np.hypot(*(p - a - share * (b - a))))


# Scenario: how it is planned, size and seconds unless others are asked for.
_SCENARIOS: dict[str, tuple[Callable[[_Plan], None], tuple[int, int], float]] = {
    "crossing": (_crossing, (640, 360), 10.0),
    "occlusion": (_occlusion, (640, 360), 10.0),
    "jitter": (_jitter, (640, 360), 11.0),
    "reentry": (_reentry, (640, 360), 12.0),
    "crowd": (_crowd, (640, 360), 12.0),
    "drops": (_drops, (640, 360), 10.0),
    "traffic": (_traffic, (1920, 1080), 20.0),
}
SCENARIOS: tuple[str, ...] = tuple(_SCENARIOS)


def make_video(
    scenario: str,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    seconds: float | None = None,
    fps: float = 25.0,
) -> SceneVideo:
    """Plan a video; nothing is drawn yet.

    Args:
        scenario: one of `SCENARIOS`, see the top of this module.
        seed: of everything random.
        size: width and height in pixels; None is 640 x 360, for traffic 1920 x 1080.
        seconds: length; None is long enough for every object to finish its way, but for traffic.
        fps: frames per second.

    Raises:
        ConfigError: no such scenario, or values that leave nothing to draw.
    """
    if scenario not in _SCENARIOS:
        raise ConfigError("there is no such scenario", got=scenario, expected=", ".join(SCENARIOS))
    build, usual_size, usual_seconds = _SCENARIOS[scenario]
    size, length = size or usual_size, seconds or usual_seconds
    if min(size) < 160 or length * fps < 1:
        raise ConfigError("such a video cannot be drawn", got=f"size={size}, seconds={length}, fps={fps}",
                          expected="sides of at least 160 pixels, at least one frame")  # fmt: skip
    plan = _Plan(seed, size, length, fps)
    build(plan)
    indices = tuple(i for i in range(round(length * fps)) if i not in plan.dropped)
    pillars = np.array(plan.pillars, np.int64).reshape(-1, 4)
    return SceneVideo(f"{scenario}-{seed}", size, fps, indices, plan.rules, tuple(plan.actors), pillars, seed)
