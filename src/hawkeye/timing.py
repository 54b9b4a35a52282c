"""Latencies of several detectors on one machine, in turns, so that all of them see the same disturbances."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from hawkeye.runtime import Runtime

_WARM_UP = 3


def in_turns_ms(runtimes: Sequence[Runtime], *, runs: int) -> list[list[float]]:
    """Milliseconds of the network alone at batch 1, `runs` of each; each run follows one that is not timed."""
    canvases = [
        np.random.default_rng(0).integers(0, 256, (r.spec.imgsz, r.spec.imgsz, 3), dtype=np.uint8) for r in runtimes
    ]
    found: list[list[float]] = [[] for _ in runtimes]
    for number in range(_WARM_UP + runs):
        for runtime, canvas, times in zip(runtimes, canvases, found, strict=True):
            runtime.infer(canvas)  # brings the weights back into the caches that the one before has filled
            started = time.perf_counter()
            runtime.infer(canvas)
            if number >= _WARM_UP:
                times.append((time.perf_counter() - started) * 1e3)
    return found
