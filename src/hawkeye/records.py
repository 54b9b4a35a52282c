"""What is measured, apart from what is made: accuracy and latency point at an artefact's files by their hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import ValidationError

from hawkeye.artifact import Format, Record, write_json
from hawkeye.errors import ModelError

# A runtime as a column of the table: library and numeric precision.
RuntimeName = Literal["pytorch-fp32", "onnxruntime", "openvino-f32", "openvino-default", "openvino-int8"]
_R = TypeVar("_R", bound="Saved")


class Saved(Record):
    """A record that lives in a JSON file of its own."""

    def save(self, path: Path) -> None:
        """Write atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read back.

        Raises:
            ModelError: not there, or not this kind of record.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            raise ModelError(f"cannot read the record {path}", got=str(error).splitlines()[0]) from None


class ClassAccuracy(Record):
    """Accuracy of one class; None where the pictures hold none of it."""

    name: str
    instances: int
    ap50: float | None
    ap50_95: float | None


class AccuracyRecord(Saved):
    """Accuracy of one file of an artefact on one set of pictures, as fractions (not points).

    Attributes:
        matches: file beside the record (.npz) with what a paired bootstrap needs, per picture and class.
    """

    schema_version: Literal[1] = 1
    name: str
    artifact_sha256: str
    file_sha256: str
    format: Format
    runtime: RuntimeName
    precision_hint: str
    dataset: str
    dataset_sha256: str
    split: str
    images: int
    skipped: int
    imgsz: int
    conf: float
    iou: float
    max_det: int
    threads: int
    map50: float
    map50_95: float
    per_class: tuple[ClassAccuracy, ...]
    matches: str
    seconds: float
    environment: dict[str, Any]


class Percentiles(Record):
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


class LatencyRow(Record):
    """One model in one runtime; raw values are kept, in the order in which they were measured.

    Attributes:
        network_ms: the network alone.
        frame_ms: the whole frame: letterbox + network + decode + NMS (reading and decoding of the picture excluded).
        start_s: from nothing to the first result.
        peak_rss_bytes: of a fresh process that loads the model and runs it once; None where it was not measured.
    """

    name: str
    runtime: RuntimeName
    file_sha256: str
    precision_hint: str
    precision_executed: str
    network_ms: tuple[float, ...]
    frame_ms: tuple[float, ...]
    network: Percentiles
    frame: Percentiles
    throughput_fps: float | None
    start_s: float | None
    peak_rss_bytes: int | None


class LatencyRecord(Saved):
    """Latencies of all rows, measured in turns in one run."""

    schema_version: Literal[1] = 1
    imgsz: int
    batch: int
    threads: int
    frame_hw: tuple[int, int]
    rows: tuple[LatencyRow, ...]
    seconds: float
    environment: dict[str, Any]


def load_all(kind: type[_R], folder: Path) -> list[_R]:
    """All records of one kind in a folder, in the order of their file names."""
    return [kind.load(path) for path in sorted(folder.glob("*.json"))]
