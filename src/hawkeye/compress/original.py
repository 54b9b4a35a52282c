"""How a run begins: a checkpoint becomes its first artefact."""

from __future__ import annotations

import time
from pathlib import Path

from hawkeye import artifact, keys
from hawkeye.artifact import Artifact
from hawkeye.compress import yolo
from hawkeye.compress.checkpoint_file import check_file
from hawkeye.compress.macs import params_and_macs


def import_original(checkpoint: Path, *, imgsz: int, out: Path) -> Artifact:
    """Take a checkpoint into a run: check it, count it, copy it into `out`.

    Raises:
        CheckpointError: it cannot be compressed.
    """
    started, checkpoint = time.perf_counter(), Path(checkpoint)
    check_file(checkpoint)
    key = keys.original(checkpoint, imgsz)
    if (done := artifact.reuse(out, key)) is not None:
        return done
    loaded = yolo.load_checkpoint(checkpoint)
    spec = yolo.spec_of(loaded.model, imgsz)
    params, macs = params_and_macs(loaded.model, imgsz)
    target = out / "original.pt"
    artifact.write_bytes(target, checkpoint.read_bytes())
    return Artifact.create(out, {"pytorch": target}, started=started, name="original", stage="original", spec=spec,
                           params=params, macs=macs, key=key, config={"imgsz": imgsz},
                           details={"source": checkpoint.name, "trained_imgsz": loaded.imgsz})  # fmt: skip
