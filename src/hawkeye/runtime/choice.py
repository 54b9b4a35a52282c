"""Opens the engine for a model: one frame at a time or several in flight, as asked for or as measured here."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hawkeye.artifact import Artifact
from hawkeye.errors import ConfigError
from hawkeye.runtime.detector import Detector
from hawkeye.runtime.engine import AsyncBackend, Backend, Engine, Job, SyncBackend
from hawkeye.runtime.resolution import Fixed, Policy, make_policy

EngineKind = Literal["auto", "sync", "async"]
# Work in flight delays each frame, so it must be worth it.
_CLEARLY_FASTER = 1.05


def choose(
    sync: Callable[[], Backend],
    several: Callable[[], Backend],
    image: NDArray[np.uint8],
    *,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Callable[[], Backend], str]:
    """Measure both kinds on this machine with this model, and keep the one that gives more frames per second.

    Args:
        sync, several: make the two backends.
        image: (H, W, 3) uint8 BGR to measure with.
        seconds: time for each.

    Returns:
        the maker of the better one, and what was measured, in words.
    """
    backends = [sync(), several()]
    frames, spent = [0, 0], [0.0, 0.0]
    try:
        for turn in range(5):  # turn and turn about: the machine's speed may change; the first is for warming up
            for place, backend in enumerate(backends):
                engine = Engine(lambda backend=backend: backend)  # type: ignore[misc]
                started = clock()
                count = 0
                while clock() - started < seconds / 4:
                    while engine.free:
                        engine.submit(Job(image))
                    count += len(engine.collect(1.0))
                while engine.in_flight:
                    count += len(engine.collect(1.0))
                if turn:
                    frames[place] += count
                    spent[place] += clock() - started
    finally:
        for backend in backends:
            backend.close()
    rates = [count / time_s for count, time_s in zip(frames, spent, strict=True)]
    better = rates[1] > _CLEARLY_FASTER * rates[0]
    words = f"sync {rates[0]:.1f} frames/s, {backends[1].name} {rates[1]:.1f}, measured here"
    return (several, f"async ({words})") if better else (sync, f"sync ({words})")


def open_engine(
    model: str | Path | Artifact,
    *,
    kind: EngineKind = "auto",
    resolution: str | None = None,
    worth_measuring: bool = True,
    timeout_s: float = 10.0,
    **options: Any,
) -> tuple[Engine, tuple[str, ...], str]:
    """An engine for a model.

    Args:
        model: as `Detector` takes it.
        kind: "sync", "async" (fixed resolutions of OpenVINO models only), or "auto", which measures both.
        resolution: a policy, see `runtime.resolution.make_policy`; left out, the model's own size.
        worth_measuring: False where there is so little work that "auto" should just take "sync".
        timeout_s: see `Engine`.
        options: as `Detector` takes them: rect, conf, iou, threads, runtime, max_det, agnostic, classes.

    Returns:
        the engine, the class names, and what was chosen and why, in words.

    Raises:
        ModelError, ConfigError: the model or an option cannot be used, or the two do not fit.
    """
    size = re.fullmatch(r"fixed:([1-9]\d{1,4})", resolution or "")
    if kind == "async" and resolution is not None and size is None:
        raise _only_sync(resolution)
    detectors: list[Detector] = []
    looks = [0]

    def looked() -> None:
        looks[0] += 1

    def open_policy() -> Policy:
        if resolution is not None and size is None:
            return make_policy(
                resolution, model, **{"conf": 0.25, "iou": 0.7, "threads": 0, "watch": looked, **options}
            )
        detectors.append(Detector(model, imgsz=int(size[1]) if size else None, **options))
        return Fixed(detectors[-1])

    first = open_policy()
    spare = [first]  # a restart needs a policy of its own: the one before may still be inside the network

    def sync() -> Backend:
        policy = spare.pop() if spare else open_policy()
        of_stream: dict[str, Policy] = {}
        # Copies of an unused policy share its networks, which is safe as one thread runs them all.
        return SyncBackend(lambda key: of_stream.setdefault(key, copy.copy(policy)), policy.prepare, lambda: looks[0])

    detector = detectors[0] if detectors else None
    make_queue = getattr(detector.runtime, "queue", None) if detector else None
    if detector is None or make_queue is None:
        if kind == "async":
            raise _only_sync(detector.runtime.name if detector else str(resolution))
        return Engine(sync, timeout_s=timeout_s), first.names, "sync"

    def several() -> Backend:
        return AsyncBackend(make_queue(), rect=detector.rect, conf=detector.conf, iou=detector.iou,
                            max_det=detector.max_det, agnostic=detector.agnostic, classes=detector.classes)  # fmt: skip

    if kind == "async":
        engine = Engine(several, timeout_s=timeout_s)
        return engine, first.names, engine.name
    if kind == "sync" or not worth_measuring:
        return Engine(sync, timeout_s=timeout_s), first.names, "sync"
    noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)
    make, words = choose(lambda: SyncBackend(lambda _: first, first.prepare), several, noise)
    return Engine(make if make is several else sync, timeout_s=timeout_s), first.names, words


def _only_sync(got: str) -> ConfigError:
    return ConfigError("--engine async does not fit", got=got, expected="a fixed resolution and an OpenVINO model",
                       mend="use --engine sync, or --resolution fixed:640")  # fmt: skip
