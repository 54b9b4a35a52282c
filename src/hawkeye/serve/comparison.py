"""A/B on live traffic: a second model looks at each n-th frame that the served one has looked at."""

from __future__ import annotations

import queue
import statistics
import threading
from collections import deque

import numpy as np

from hawkeye.detections import Detections
from hawkeye.geometry import iou_matrix
from hawkeye.runtime.detector import Detector
from hawkeye.runtime.engine import Job
from hawkeye.serve.schemas import Comparison

_MATCH_IOU = 0.5
_RECENT = 200


class Comparator:
    """Compares; `watch` is called with each frame's job by whoever runs the engine, and never waits.

    Args:
        served, candidate: ids of the two models. names: classes of the served one.
        detector: of the candidate; only the thread in here uses it.
        every: each n-th frame.
        conf: boxes below this do not take part.
    """

    def __init__(
        self, served: str, names: tuple[str, ...], candidate: str, detector: Detector, *, every: int, conf: float
    ) -> None:
        self.served, self.candidate, self.every = served, candidate, every
        self._names, self._detector, self._conf = names, detector, conf
        self._lock = threading.Lock()
        self._jobs: queue.Queue[Job | None] = queue.Queue(1)
        self._seen = self._frames = self._skipped = 0
        self._both = self._only_served = self._only_candidate = 0
        self._served_ms: deque[float] = deque(maxlen=_RECENT)
        self._candidate_ms: deque[float] = deque(maxlen=_RECENT)
        self._error = ""
        self._thread = threading.Thread(target=self._run, name="comparison", daemon=True)
        self._thread.start()

    def watch(self, job: Job) -> None:
        """Take a finished frame, if it is its turn and the candidate is free."""
        if job.found is None:
            return
        self._seen += 1
        if self._seen % self.every:
            return
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self._skipped += 1

    def stop(self) -> None:
        """End the thread."""
        while True:
            try:
                self._jobs.put_nowait(None)
                break
            except queue.Full:
                try:
                    self._jobs.get_nowait()
                except queue.Empty:
                    continue
        self._thread.join(2.0)

    def result(self) -> Comparison:
        """What was found so far."""
        with self._lock:
            frames = self._frames
            pairs = self._both + self._only_served + self._only_candidate
            return Comparison(
                served=self.served, candidate=self.candidate, every=self.every, frames=frames, skipped=self._skipped,
                # Frames on which both see nothing agree, but say nothing of boxes.
                agreement=round(self._both / pairs, 4) if pairs else None,
                only_served=round(self._only_served / frames, 3) if frames else None,
                only_candidate=round(self._only_candidate / frames, 3) if frames else None,
                served_ms=round(statistics.median(self._served_ms), 2) if self._served_ms else None,
                candidate_ms=round(statistics.median(self._candidate_ms), 2) if self._candidate_ms else None,
                error=self._error,
            )  # fmt: skip

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            assert job.found is not None
            try:
                found = self._detector(job.image)
            except Exception as error:  # the candidate is on trial: whatever it does must not harm the service
                self._error = f"{type(error).__name__}: {error}"[:500]
                continue
            both, mine, theirs = agree(
                _sure(job.found, self._conf), self._names, _sure(found, self._conf), self._detector.names
            )
            with self._lock:
                self._error = ""
                self._frames += 1
                self._both += both
                self._only_served += mine
                self._only_candidate += theirs
                if "network" in job.timings:
                    self._served_ms.append(job.timings["network"])
                self._candidate_ms.append(self._detector.timings["network"])


def agree(a: Detections, a_names: tuple[str, ...], b: Detections, b_names: tuple[str, ...]) -> tuple[int, int, int]:
    """Boxes that find a partner of the same class with IoU of at least 0.5, and those of each side that do not."""
    if not len(a) or not len(b):
        return 0, len(a), len(b)
    same = np.array([[a_names[i] == b_names[j] for j in b.class_id] for i in a.class_id])
    overlap = np.where(same, iou_matrix(a.xyxy, b.xyxy), 0.0)
    pairs = 0
    while overlap.max() >= _MATCH_IOU:  # the best pair first
        i, j = np.unravel_index(int(overlap.argmax()), overlap.shape)
        overlap[i, :] = overlap[:, j] = 0.0
        pairs += 1
    return pairs, len(a) - pairs, len(b) - pairs


def _sure(found: Detections, conf: float) -> Detections:
    return found[found.score > conf]
