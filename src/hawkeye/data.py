"""Data sets and pictures: data.yaml, labels, folders. Untrusted input: limits first, decoding second."""

from __future__ import annotations

import hashlib
import io
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from hawkeye.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_KINDS = "pictures: " + " ".join(sorted(IMAGE_SUFFIXES))
MAX_PIXELS = 50_000_000
MAX_UNREADABLE = 0.10  # share of pictures that may be skipped before it is an error
_MAX_YAML_BYTES = 1_000_000


@dataclass(frozen=True)
class Dataset:
    """A YOLO data set: class names, and the pictures of each split in sorted order."""

    yaml: Path
    names: tuple[str, ...]
    splits: dict[str, tuple[Path, ...]]

    def split(self, name: str) -> tuple[Path, ...]:
        """Pictures of one split.

        Raises:
            DataError: the data.yaml has no such split.
        """
        if not self.splits.get(name):
            raise DataError(
                f"{self.yaml} has no {name!r} pictures", got=sorted(self.splits), expected=f"a {name!r} entry"
            )
        return self.splits[name]


def load_dataset(path: Path) -> Dataset:
    """Read a data.yaml; paths in it are relative to `path:` in it, and that to the file itself.

    Raises:
        DataError: cannot be read, or an entry is missing or names what does not exist.
    """
    try:
        if path.stat().st_size > _MAX_YAML_BYTES:
            raise DataError(f"{path} is too large for a data.yaml", got=path.stat().st_size, expected=_MAX_YAML_BYTES)
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise DataError(f"cannot read {path}", got=error.strerror, mend="give --data an existing data.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML", got=str(error).splitlines()[0], expected="train, val, names") from None
    if not isinstance(content, dict) or not {"train", "names"} <= content.keys():
        got = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} is not a YOLO data set", got=got, expected="keys train, val and names")
    names = _names(path, content)
    root = (path.parent / str(content.get("path") or ".")).resolve()
    splits = {s: tuple(_pictures_of(path, root, s, content[s])) for s in ("train", "val", "test") if content.get(s)}
    return Dataset(path, names, splits)


def _names(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"class numbers in {path} have gaps", got=sorted(names), expected=f"0 to {len(names) - 1}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"names in {path} cannot be used", got=names, expected="a list of class names")
    if "nc" in content and content["nc"] != len(names):
        raise DataError(
            f"{path} contradicts itself", got=f"nc: {content['nc']}", expected=f"{len(names)}, as many as names"
        )
    return tuple(str(name) for name in names)


def _pictures_of(path: Path, root: Path, split: str, entry: object) -> list[Path]:
    entries = entry if isinstance(entry, list) else [entry]
    pictures: list[Path] = []
    for item in entries:
        place = (root / str(item)).resolve()
        if place.is_dir():
            pictures += list_images(place)
        elif place.is_file() and place.suffix == ".txt":
            lines = [line.strip() for line in place.read_text().splitlines() if line.strip()]
            pictures += [(place.parent / line).resolve() for line in lines]
        else:
            raise DataError(f"{split!r} of {path} does not exist", got=place, mend="correct `path` or the entry")
    if not pictures:
        raise DataError(
            f"{split!r} of {path} holds no pictures", got=root / str(entry), expected=sorted(IMAGE_SUFFIXES)
        )
    return sorted(set(pictures))


def list_images(folder: Path) -> list[Path]:
    """All pictures under a folder, sorted.

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError("no such folder of pictures", got=folder, mend="give --images an existing folder")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def read_image(path: Path, label: str | None = None) -> NDArray[np.uint8]:
    """Decode a picture as (H, W, 3) BGR, turned upright; its header is checked before anything is decoded.

    Args:
        label: names it in messages; its path unless given.

    Raises:
        DataError: not a picture, damaged, cut off, or more than 50 megapixels.
    """
    label = label or str(path)
    _check_header(path, label)
    return _decoded(lambda: cv2.imread(str(path), cv2.IMREAD_COLOR), label)


def decode_image(content: bytes, label: str) -> NDArray[np.uint8]:
    """The same for the bytes of a picture file; `label` names it in messages."""
    _check_header(io.BytesIO(content), label)
    return _decoded(lambda: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), label)


def _check_header(picture: Path | io.BytesIO, label: str) -> None:
    try:
        with Image.open(picture) as header:
            width, height = header.size
            cut = width * height <= MAX_PIXELS and cut_off(header)
    except Image.DecompressionBombError:  # its limit is above ours
        raise DataError(f"{label} is too large", expected=f"at most {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow raises many kinds for hostile files; all mean the same here
        raise DataError(f"cannot read {label}", got=type(error).__name__, expected="a picture") from None
    if width * height > MAX_PIXELS:
        raise DataError(f"{label} is too large", got=f"{width}x{height}", expected=f"at most {MAX_PIXELS:,} pixels")
    if cut:
        raise DataError(f"{label} is cut off", got="a JPEG without its end", expected="a whole picture",
                        mend="copy it again, or remove it")  # fmt: skip


def cut_off(header: Image.Image) -> bool:
    """Whether the file of an opened picture is a JPEG that ends too early; decoders may show grey for what is missing.

    A whole one ends with its end marker, unless something follows it: phones append a second picture or a video. Only
    there the picture is decoded to see, at an eighth of its size.
    """
    if not isinstance(header, JpegImageFile) or header.fp is None:
        return False
    header.fp.seek(-2, io.SEEK_END)
    if header.fp.read(2) == b"\xff\xd9":
        return False
    header.draft("L", (1, 1))
    try:
        header.load()
    except OSError:
        return True
    return False


def _decoded(decode: Callable[[], Any], label: str) -> NDArray[np.uint8]:
    try:
        image = decode()
    except cv2.error:
        image = None
    if image is None:
        raise DataError(f"cannot decode {label}", got="a damaged picture", mend="replace or remove it")
    return np.asarray(image, np.uint8)


def readable(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split pictures into those that look whole, without decoding them, and those that must be skipped.

    Raises:
        DataError: more than 10 % must be skipped, or none is left.
    """
    good: list[Path] = []
    bad: list[Path] = []
    for path in paths:
        try:
            with Image.open(path) as header:
                fits = header.size[0] * header.size[1] <= MAX_PIXELS and not cut_off(header)
                if header.format == "PNG":  # of other kinds Pillow verifies nothing
                    header.verify()
        except Exception:  # as in read_image
            fits = False
        (good if fits else bad).append(path)
    if not good or len(bad) > MAX_UNREADABLE * len(paths):
        named = ", ".join(str(path) for path in bad[:3])
        raise DataError("too many pictures cannot be read", got=f"{len(bad)} of {len(paths)}, such as {named}",
                        expected=f"at most {MAX_UNREADABLE:.0%}", mend="remove or replace them")  # fmt: skip
    return good, bad


def label_path(image: Path) -> Path:
    """Where YOLO keeps a picture's labels: the last `images` folder in its path becomes `labels`."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def read_labels(image: Path, classes: int) -> NDArray[np.float32]:
    """Labels of a picture as (N, 5) float32: class, then centre x, y, width and height as fractions of the picture.

    Polygons are taken by their bounding box. No file means no objects.

    Raises:
        DataError: a row that is not a label, a class out of range, a coordinate outside [0, 1].
    """
    path = label_path(image)
    if not path.is_file():
        return np.zeros((0, 5), np.float32)
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = [float(part) for part in line.split()]
        except ValueError:
            values = []
        if len(values) < 5 or len(values) % 2 == 0 or not all(math.isfinite(v) for v in values):
            raise DataError(f"{path}:{number} is not a label", got=line[:80], expected="class x y width height")
        cls, coords = values[0], np.asarray(values[1:])
        if cls != int(cls) or not 0 <= cls < classes:
            raise DataError(f"{path}:{number} has a class out of range", got=cls, expected=f"0 to {classes - 1}")
        if coords.min() < 0 or coords.max() > 1:
            raise DataError(f"{path}:{number} lies outside the picture", got=line[:80], expected="values in [0, 1]",
                            mend="labels are fractions of the picture's width and height, not pixels")  # fmt: skip
        if len(coords) > 4:
            xs, ys = coords[0::2], coords[1::2]
            low, high = np.array([xs.min(), ys.min()]), np.array([xs.max(), ys.max()])
            coords = np.concatenate([(low + high) / 2, high - low])
        rows.append([cls, *coords])
    return np.asarray(rows, np.float32).reshape(-1, 5)


def check_labels(dataset: Dataset) -> int:
    """Read every label of a data set once, so that a mistake is told before hours of work; returns their number."""
    total = sum(len(read_labels(image, len(dataset.names))) for split in dataset.splits.values() for image in split)
    if total == 0:
        raise DataError(f"{dataset.yaml} has no labels at all", got=label_path(next(iter(dataset.splits.values()))[0]),
                        expected="a .txt beside each picture, in `labels` instead of `images`")  # fmt: skip
    return total


def training_images(data: Path | None, images: Path | None) -> tuple[list[Path], list[Path]]:
    """Labelled training pictures and unlabelled pictures of a run; validation pictures are never among them.

    Raises:
        DataError: neither is given, or nothing usable is there.
    """
    if data is None and images is None:
        raise DataError("no pictures to work on", got="neither --data nor --images",
                        expected="a data.yaml, a folder of unlabelled pictures, or both")  # fmt: skip
    labelled = list(load_dataset(data).split("train")) if data else []
    unlabelled = list_images(images) if images else []
    if images and not unlabelled:
        raise DataError("the folder holds no pictures", got=images, expected=_KINDS)
    if data and unlabelled:
        reserved = {path for name, paths in load_dataset(data).splits.items() if name != "train" for path in paths}
        unlabelled = [path for path in unlabelled if path.resolve() not in reserved]
    return readable(labelled)[0] if labelled else [], readable(unlabelled)[0] if unlabelled else []


def sample(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """A repeatable random choice of at most `count` pictures, sorted."""
    return sorted(random.Random(seed).sample(sorted(paths), min(count, len(paths))))


def split_holdout(pictures: Sequence[Path], share: float, seed: int, limit: int = 64) -> tuple[list[Path], list[Path]]:
    """Training pictures to learn from, and a few to judge on (at most `limit`, which keeps checks short)."""
    order = sorted(pictures)
    random.Random(seed).shuffle(order)
    count = max(1, min(limit, round(len(order) * share)))
    return sorted(order[count:]), sorted(order[:count])


def content_digest(paths: Iterable[Path]) -> str:
    """Hash of pictures and their labels, whatever folder they lie in: the same data give the same hash."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode())
        total.update(path.read_bytes())
        labels = label_path(path)
        if labels != path and labels.is_file():
            total.update(labels.read_bytes())
    return total.hexdigest()
