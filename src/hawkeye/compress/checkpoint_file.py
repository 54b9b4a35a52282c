"""What can be told of a checkpoint's file without unpickling it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hawkeye.errors import CheckpointError

HINT = "give the .pt of a YOLOv8 detector, as `yolo detect train` writes it"
_MAX_BYTES = 4 << 30


def check_file(path: Path) -> None:
    """Refuse what cannot be a checkpoint.

    Raises:
        CheckpointError: nothing there, another kind of file, an impossible size, truncated.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise CheckpointError(f"no such checkpoint: {path}", got=got, expected="a .pt file", mend=HINT)
    if path.suffix != ".pt":
        raise CheckpointError(f"{path} is no checkpoint", got=f"suffix {path.suffix!r}", expected=".pt", mend=HINT)
    size = path.stat().st_size
    if not 0 < size <= _MAX_BYTES:
        raise CheckpointError(f"{path} has an impossible size", got=f"{size:,} bytes", expected=f"1 to {_MAX_BYTES:,}")
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"PK\x03\x04":
        raise CheckpointError(f"{path} is no checkpoint", got=f"a file that starts with {magic!r}",
                              expected="a zip archive as torch.save writes it", mend=HINT)  # fmt: skip
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged", got=error, expected="a whole file",
                              mend="copy or download it again") from None  # fmt: skip
    if not any(entry.endswith("data.pkl") for entry in entries):
        raise CheckpointError(f"{path} is no checkpoint", got=f"a zip archive of {entries[:3]}", mend=HINT)
