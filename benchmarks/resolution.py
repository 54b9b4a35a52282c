"""Accuracy and time per frame of each policy of resolution: by object size on pictures, and on drawn videos.

    python benchmarks/resolution.py --model runs/first --data coco-sample/data.yaml --drawn-model runs/demo/run

Pictures: AP by object size as COCO defines it, with the model of the pictures. Videos: exact truth; MOTA (CLEAR MOT,
Bernardin and Stiefelhagen 2008, overlap of half, class included), errors of counts, and milliseconds per frame, with a
model that was trained on drawn scenes, as `hawkeye demo` makes one. All policies see each frame in turn, so that a
machine that gets busier meets all alike; `speed` is against fixed:640, and so is `cpu_speed`, by processor time instead
of time on the clock. Networks are compiled before, as a session does it. Prints a Markdown table and then JSON. Either
part can be left out. Takes some minutes; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hawkeye import environment
from hawkeye.data import load_dataset, read_image, read_labels
from hawkeye.detections import Detections
from hawkeye.evaluate import coco_ground_truth, coco_results, to_truth
from hawkeye.geometry import iou_matrix
from hawkeye.progress import progress
from hawkeye.runtime.resolution import Policy, make_policy
from hawkeye.scene_plans import SCENARIOS, make_video
from hawkeye.scene_videos import SceneVideo
from hawkeye.track.bytetrack import ByteTracker, assign
from hawkeye.track.counting import Counter

POLICIES = ("fixed:640", "fixed:320", "adaptive", "tiles")
BASE = "fixed:640"
SMALL = 48  # objects whose longer side has fewer pixels are counted by themselves too


def pictures(options: argparse.Namespace) -> list[dict[str, Any]]:
    """AP by object size; a picture by itself has nothing before it, so adaptive looks at the whole of each."""
    from faster_coco_eval import COCO, COCOeval_faster

    dataset = load_dataset(options.data)
    paths = dataset.split("val")[: options.images]
    policies = {
        text: make_policy("adaptive:1" if text == "adaptive" else text, options.model, conf=0.001, iou=0.7,
                          threads=options.threads, rect=not options.square)
        for text in options.policies
    }  # fmt: skip
    found: dict[str, list[Detections]] = {text: [] for text in policies}
    spent: dict[str, list[float]] = {text: [] for text in policies}
    truth = []
    with progress("pictures", len(paths)) as task:
        for number, path in enumerate(paths):
            image = read_image(path)
            truth.append(to_truth(read_labels(path, len(dataset.names)), (image.shape[0], image.shape[1])))
            for text in turned(list(policies), number):
                started = time.perf_counter()
                found[text].append(policies[text](image))
                spent[text].append((time.perf_counter() - started) * 1e3)
            task.advance()
    silent = {"print_function": lambda *_: None}
    ground = COCO(coco_ground_truth(truth, dataset.names), **silent)
    rows = []
    for text in policies:
        judge = COCOeval_faster(ground, ground.loadRes(coco_results(found[text])), iouType="bbox", **silent)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        ap, ap50, _, small, medium, large = (float(value) for value in judge.stats[:6])
        rows.append({"policy": text, "images": len(paths), "ap": ap, "ap50": ap50, "small": small, "medium": medium,
                     "large": large, "ms": statistics.median(spent[text])})  # fmt: skip
    return rows


class Judge:
    """One policy on one video: tracks, counts, and what was wrong."""

    def __init__(self, policy: Policy, video: SceneVideo) -> None:
        self.policy, self.video = policy, video
        policy.prepare(video.size[::-1])
        self.tracker, self.counter = ByteTracker(), Counter(video.rules, video.names, size=video.size)
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.objects = self.missed = self.false = self.switches = self.small = self.small_found = 0
        self._track_of: dict[int, int] = {}

    def __call__(self, image: Any, truth: Detections, time_s: float) -> None:
        """One frame: time the policy alone, then track, count and compare."""
        expected = self.tracker.predicted(time_s)
        started, started_cpu = time.perf_counter(), time.process_time()
        found = self.policy(image, expected)
        self.ms.append((time.perf_counter() - started) * 1e3)
        self.cpu_ms.append((time.process_time() - started_cpu) * 1e3)
        tracked = self.tracker.update(found, time_s)
        self.counter.update(tracked, time_s)
        same = truth.class_id[:, None] == tracked.class_id[None]
        overlap = iou_matrix(truth.xyxy, tracked.xyxy) * same
        assert truth.track_id is not None and tracked.track_id is not None
        # A pair that was matched before stays one as long as it overlaps by half.
        before = np.array([self._track_of.get(int(i), -1) for i in truth.track_id])
        kept = (before[:, None] == tracked.track_id[None]) & (overlap >= 0.5)
        rows, columns = assign(np.where(overlap >= 0.5, overlap + 10 * kept, 0), 0.5)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            identity, track = int(truth.track_id[row]), int(tracked.track_id[column])
            self.switches += self._track_of.get(identity, track) != track
            self._track_of[identity] = track
        small = (truth.xyxy[:, 2:] - truth.xyxy[:, :2]).max(axis=1, initial=0) < SMALL
        self.small, self.small_found = self.small + int(small.sum()), self.small_found + int(small[rows].sum())
        self.objects += len(truth)
        self.missed += len(truth) - len(rows)
        self.false += len(tracked) - len(rows)

    def count_errors(self) -> tuple[int, int]:
        """Sum of the absolute errors of all counts (each rule and direction), and the sum of the true counts."""
        self.counter.finish()
        totals, wrong, right = self.counter.totals(), 0, 0
        for rule, by_class in self.video.counts().items():
            for kind in ("in", "out", "enter", "exit"):
                if kind in totals[rule]:
                    true = sum(counts[kind] for counts in by_class.values())
                    wrong += abs(true - totals[rule][kind])
                    right += true
        return wrong, right


def videos(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each policy on each drawn video."""
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    planned = [make_video(name, seed=seed) for name in options.scenarios for seed in seeds]
    planned = [replace(video, indices=video.indices[: options.frames]) for video in planned]
    rows = []
    with progress("videos", sum(len(video) for video in planned)) as task:
        for video in planned:
            judges = {
                # As `hawkeye count` has it.
                text: Judge(make_policy(text, options.drawn_model, conf=0.1, iou=0.7, agnostic=True,
                                        threads=options.threads, rect=not options.square), video)
                for text in options.policies
            }  # fmt: skip
            for number, frame in enumerate(video.frames()):
                for text in turned(list(judges), number):
                    judges[text](frame.image, frame.truth, frame.time_s)
                task.advance(note=video.name)
            for text, judge in judges.items():
                wrong, right = judge.count_errors()
                ms, cpu_ms = judge.ms[1:], judge.cpu_ms[1:]  # `adaptive` measures its looks in the first, for 0.2 s
                rows.append({
                    "video": video.name, "policy": text, "frames": len(judge.ms), "objects": judge.objects,
                    "missed": judge.missed, "false": judge.false, "switches": judge.switches, "small": judge.small,
                    "small_found": judge.small_found,
                    "mota": 1 - (judge.missed + judge.false + judge.switches) / max(1, judge.objects),
                    "count_errors": wrong, "counts": right, "ms_mean": statistics.mean(ms),
                    "ms_median": statistics.median(ms), "cpu_ms_mean": statistics.mean(cpu_ms),
                    "what": judge.policy.describe(),
                })  # fmt: skip
    return rows


def summed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each scenario and policy, over all seeds."""
    result = []
    for scenario, policy in dict.fromkeys((row["video"].rpartition("-")[0], row["policy"]) for row in rows):
        mine = [row for row in rows if (row["video"].rpartition("-")[0], row["policy"]) == (scenario, policy)]
        base = [row for row in rows if (row["video"].rpartition("-")[0], row["policy"]) == (scenario, BASE)]
        added = ("frames", "objects", "missed", "false", "switches", "small", "small_found", "count_errors", "counts")
        total = {key: sum(row[key] for row in mine) for key in added}
        wrong = total["missed"] + total["false"] + total["switches"]
        ms, cpu_ms = per_frame(mine, "ms_mean"), per_frame(mine, "cpu_ms_mean")
        result.append({"scenario": scenario, "policy": policy, **total, "mota": 1 - wrong / max(1, total["objects"]),
                       "ms": ms, "speed": per_frame(base, "ms_mean") / ms if base else None, "cpu_ms": cpu_ms,
                       "cpu_speed": per_frame(base, "cpu_ms_mean") / cpu_ms if base else None})  # fmt: skip
    return result


def per_frame(rows: list[dict[str, Any]], key: str) -> float:
    """A mean over all frames of several videos."""
    return statistics.fmean([row[key] for row in rows], [row["frames"] for row in rows])


def turned(items: list[str], by: int) -> list[str]:
    """The items, begun at another one each time."""
    by %= len(items)
    return items[by:] + items[:by]


def markdown(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """A table; fractions with three digits."""

    def cell(value: object) -> str:
        return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cell(row[column]) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="detector of the pictures' classes")
    parser.add_argument("--data", type=Path, help="data.yaml; its val pictures are used")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--drawn-model", help="detector of drawn scenes")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seeds", type=int, default=2, help="videos of each scenario")
    parser.add_argument("--first-seed", type=int, default=0, help="of the first video; the others follow")
    parser.add_argument("--frames", type=int, help="of each video at most; left out, all")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--square", action="store_true", help="square inputs, whatever the picture's shape")
    options = parser.parse_args()
    result: dict[str, Any] = {"environment": environment.describe(), "threads": options.threads}
    if options.model and options.data:
        result["pictures"] = pictures(options)
        print(markdown(result["pictures"], ("policy", "images", "small", "medium", "large", "ap", "ap50", "ms")) + "\n")
    if options.drawn_model:
        result["videos"] = videos(options)
        result["scenarios"] = summed(result["videos"])
        print(markdown(result["scenarios"], tuple(result["scenarios"][0])) + "\n")
    if len(result) == 2:
        parser.error("nothing to do: give --model and --data, or --drawn-model, or all three")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
