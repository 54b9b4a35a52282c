"""What tracking and counting cost per frame, with many tracks at once.

    python benchmarks/tracking.py [--tracks 150] [--frames 300] [--repeats 5]

Objects wander over a 1080p picture at 25 frames per second, detected with trembling boxes and some misses. `spread`
places them apart; `crowd` packs them into a quarter of the picture, where many boxes overlap and compete. Prints JSON
with medians and 95th percentiles in milliseconds; the aim is under 2 ms for 150 tracks, tracking and counting together.
`cpu_ms` is the processor time of both, which other programs on the machine do not disturb.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from hawkeye import environment
from hawkeye.detections import Detections
from hawkeye.track.bytetrack import ByteTracker
from hawkeye.track.counting import Counter
from hawkeye.track.rules import parse_rules

SIZE = (1920, 1080)


def frames(count: int, tracks: int, share: float, rng: np.random.Generator) -> list[Detections]:
    """Detections of `count` frames in which `tracks` objects bounce around in a share of the picture."""
    room = np.array(SIZE) * share
    sides = rng.uniform(30, 90, (tracks, 2))
    place, speed = rng.uniform(0, 1, (tracks, 2)) * room, rng.normal(0, 4, (tracks, 2))
    kinds = rng.integers(0, 4, tracks).astype(np.int32)
    result = []
    for _ in range(count):
        place += speed
        speed = np.where((place < 0) | (place > room), -speed, speed)
        seen = rng.random(tracks) > 0.05
        middle = place[seen] + rng.normal(0, 1, (seen.sum(), 2))
        boxes = np.concatenate([middle - sides[seen] / 2, middle + sides[seen] / 2], 1).astype(np.float32)
        result.append(Detections(boxes, rng.uniform(0.3, 1, len(boxes)).astype(np.float32), kinds[seen]))
    return result


def measure(options: argparse.Namespace, share: float) -> dict[str, object]:
    """Time each frame's tracking and counting."""
    rules = parse_rules(["0.5,0,0.5,1:a", "0,0.5,1,0.5:b"], ["0.1,0.1,0.4,0.1,0.4,0.4,0.1,0.4:c"])
    track_ms, count_ms, cpu_ms, tracked = [], [], [], []
    for repeat in range(options.repeats):
        given = frames(options.frames, options.tracks, share, np.random.default_rng(repeat))
        tracker, counter = ByteTracker(), Counter(rules, ("a", "b", "c", "d"), size=SIZE)
        for number, found in enumerate(given):
            start, spent = time.perf_counter(), time.process_time()
            tracks = tracker.update(found, number / 25)
            middle = time.perf_counter()
            counter.update(tracks, number / 25)
            end, spent = time.perf_counter(), time.process_time() - spent
            if number >= 10:
                track_ms.append((middle - start) * 1e3)
                count_ms.append((end - middle) * 1e3)
                cpu_ms.append(spent * 1e3)
                tracked.append(len(tracks))
    both = np.add(track_ms, count_ms)
    return {
        "tracked_median": float(np.median(tracked)),
        **{
            name: {"p50": round(float(np.median(values)), 3), "p95": round(float(np.percentile(values, 95)), 3)}
            for name, values in (("track_ms", track_ms), ("count_ms", count_ms), ("both_ms", both), ("cpu_ms", cpu_ms))
        },
    }


def main() -> None:
    """Measure both arrangements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracks", type=int, default=150)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    result = {
        "tracks": options.tracks,
        "frames": options.frames * options.repeats,
        "spread": measure(options, 1.0),
        "crowd": measure(options, 0.5),
        "environment": environment.describe(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
