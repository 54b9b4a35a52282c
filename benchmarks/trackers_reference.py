"""Reference tracks by Roboflow's `trackers` package (Apache-2.0), which tests/test_bytetrack.py compares with.

It cannot be installed beside Hawkeye, as it brings another build of OpenCV. So two steps, in two environments:

    python benchmarks/trackers_reference.py detections /tmp/mot                      # Hawkeye's environment
    pip install trackers==2.6.1                                                      # in a fresh one
    python benchmarks/trackers_reference.py track /tmp/mot tests/reference/bytetrack.json

The sequences are in MOT Challenge's format (frame, id, x, y, w, h, score): drawn videos seen by an imperfect detector
that trembles, wavers in its scores, misses and imagines. The id in the detections is the true one, -1 for imagined.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SEQUENCES = (("crossing", 11), ("occlusion", 12), ("crowd", 13), ("drops", 14))
FRAMES, FPS = 110, 25
SETTINGS = {"high": 0.5, "new": 0.6, "match_iou": 0.2, "keep_s": 1.0}


def detections(folder: Path) -> None:
    """Write the sequences."""
    import numpy as np

    from hawkeye.detections import Detections
    from hawkeye.scene_plans import make_video
    from hawkeye.scene_videos import mot_rows

    folder.mkdir(parents=True, exist_ok=True)
    for scenario, seed in SEQUENCES:
        rng = np.random.default_rng(seed)
        rows: list[str] = []
        video = make_video(scenario, seed=seed, fps=FPS)
        for frame in video.frames(draw=False):
            if not 30 <= frame.index < 30 + FRAMES:
                continue
            truth = frame.truth[rng.random(len(frame.truth)) > 0.06]
            side = np.sqrt((truth.xyxy[:, 2:] - truth.xyxy[:, :2]).prod(1))[:, None]
            boxes = truth.xyxy + rng.normal(0, 0.02, truth.xyxy.shape) * side
            ids, score = truth.track_id, rng.beta(8, 2.5, len(truth))
            if rng.random() < 0.1:  # imagined
                corner = rng.uniform(0, 300, 2)
                boxes = np.concatenate([boxes, [[*corner, *(corner + rng.uniform(20, 60, 2))]]])
                ids, score = np.append(ids, -1), np.append(score, rng.uniform(0.2, 0.8))
            found = Detections(boxes.astype(np.float32), score.astype(np.float32), np.zeros(len(ids), np.int32), ids)
            rows += mot_rows(frame.index + 1, found)
        (folder / f"{video.name}.txt").write_text("".join(rows))


def track(folder: Path, out: Path) -> None:
    """Track the sequences with the package and write rows of frame, true id, x, y, w, h, score, its id (-1: none)."""
    from importlib.metadata import version

    import numpy as np
    import supervision as sv
    from trackers import ByteTrackTracker

    lines = []
    for path in sorted(folder.glob("*.txt")):
        tracker = ByteTrackTracker(
            lost_track_buffer=round(30 * SETTINGS["keep_s"]),
            frame_rate=FPS,
            track_activation_threshold=SETTINGS["new"],
            high_conf_det_threshold=SETTINGS["high"],
            minimum_iou_threshold=SETTINGS["match_iou"],
            minimum_consecutive_frames=2,
        )
        data = np.loadtxt(path, delimiter=",", ndmin=2)[:, :7]
        rows = []
        for frame in np.unique(data[:, 0]):
            part = data[data[:, 0] == frame]
            xyxy = np.concatenate([part[:, 2:4], part[:, 2:4] + part[:, 4:6]], 1)
            given = sv.Detections(xyxy=xyxy, confidence=part[:, 6], data={"row": np.arange(len(part))})
            tracked = tracker.update(given, timestamp=(frame - 1) / FPS)
            ids = np.full(len(part), -1)
            ids[tracked.data.get("row", np.zeros(0, int))] = tracked.tracker_id
            rows += [[int(p[0]), int(p[1]), *p[2:6].tolist(), p[6], int(i)] for p, i in zip(part, ids, strict=True)]
        body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        lines.append(f'{{"name":"{path.stem}","rows":[\n{body}\n]}}')
    head = {"made_by": f"trackers {version('trackers')} ByteTrackTracker", "fps": FPS, "settings": SETTINGS}
    out.write_text(json.dumps(head)[:-1] + ', "sequences": [\n' + ",\n".join(lines) + "\n]}\n")


def main() -> None:
    """One of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("detections", "track"))
    parser.add_argument("folder", type=Path, help="where the sequences are")
    parser.add_argument("out", type=Path, nargs="?", help="JSON of the step `track`")
    options = parser.parse_args()
    if options.step == "detections":
        detections(options.folder)
    elif options.out is None:
        parser.error("track needs OUT")
    else:
        track(options.folder, options.out)


if __name__ == "__main__":
    main()
