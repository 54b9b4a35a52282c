"""What a detector returns: boxes, scores, classes, and track identities where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hawkeye.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Detections of one picture, validated once, here.

    Attributes:
        xyxy: (N, 4) float32, corners in pixels of the original picture.
        score: (N,) float32 in [0, 1].
        class_id: (N,) int32.
        track_id: (N,) int64, or None where nothing was tracked.
        coasted: (N,) bool, which were not looked for in this picture but moved with their tracks; None for none.
    """

    xyxy: NDArray[np.float32]
    score: NDArray[np.float32]
    class_id: NDArray[np.int32]
    track_id: NDArray[np.int64] | None = None
    coasted: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n = len(self.xyxy)
        shapes = (self.xyxy.shape, self.score.shape, self.class_id.shape)
        optional = [values.shape for values in (self.track_id, self.coasted) if values is not None]
        if shapes != ((n, 4), (n,), (n,)) or any(shape != (n,) for shape in optional):
            raise InputError("arrays of detections do not fit together", got=shapes, expected="(N, 4), (N,), (N,)")

    @classmethod
    def empty(cls) -> Detections:
        """No detections."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, index: NDArray[Any] | slice) -> Detections:
        track_id = None if self.track_id is None else self.track_id[index]
        coasted = None if self.coasted is None else self.coasted[index]
        return Detections(self.xyxy[index], self.score[index], self.class_id[index], track_id, coasted)

    def to_records(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """JSON-ready rows: class name, score and box in pixels."""
        tracks = [None] * len(self) if self.track_id is None else self.track_id.tolist()
        return [
            {
                "class_id": int(c),
                "name": names[c],
                "score": round(float(s), 4),
                "xyxy": [round(float(v), 2) for v in box],
                **({} if t is None else {"track_id": t}),
            }
            for box, s, c, t in zip(self.xyxy, self.score, self.class_id, tracks, strict=True)
        ]
