"""What a person may name as a source, and how each kind is opened: pictures, a video, a camera, an address.

Untrusted input: schemes, the first bytes and the stated size are checked before anything is decoded.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from hawkeye.data import IMAGE_SUFFIXES, MAX_PIXELS, read_image
from hawkeye.errors import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mjpg", ".mjpeg",
                            ".wmv", ".flv", ".3gp"})  # fmt: skip
_KINDS = " ".join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))
SCHEMES = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}  # and their usual ports
TIMEOUT_MS = 5000  # for connecting, and for each frame
_EXPECTED = "a picture, a folder, a pattern, a video, the number of a camera, or an rtsp:// or http:// address"
FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_opening = threading.Lock()
# Play lists are text that makes FFmpeg open other files and addresses.
_PLAY_LISTS = (b"#EXTM3U", b"ffconcat")
_MEND = {"video": "replace the file: it is damaged or of an unknown kind",
         "camera": "check that it is plugged in, and its number",
         "url": "check host, path, user and password"}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One source, checked as far as it can be without opening it.

    Attributes:
        kind: "pictures" (in order, each a frame), "video", "camera" or "url".
        name: short and unique among the sources that were found together; safe for file names.
        label: the source for people: an address without its password and query.
        target: what is opened. It may hold a password: never print it.
        pictures: the files of the kind "pictures".
        base: the folder that the pictures lie below.
        host: what HTTP requests name as their host, where the target has its address; empty: what the target says.
    """

    kind: Literal["pictures", "video", "camera", "url"]
    name: str
    label: str
    target: str | int = field(default="", repr=False)
    pictures: tuple[Path, ...] = ()
    base: Path = Path()
    host: str = ""

    @property
    def live(self) -> bool:
        """Whether it goes on whether or not anybody looks: a camera or an address."""
        return self.kind in ("camera", "url")


class Shot(NamedTuple):
    """One decoded picture (H, W, 3) of uint8 BGR, its time in the file in seconds, and its file if it has its own."""

    image: NDArray[np.uint8]
    time_s: float | None = None
    path: Path | None = None


class Capture(Protocol):
    """An open source.

    Attributes:
        fps: frames per second that it states, 0 where it does not.
        frames: how many it states to hold; 0 where it has no end.
    """

    fps: float
    frames: int

    def read(self) -> Shot | None:
        """The next picture, or None at the end or when the connection broke.

        Raises:
            DataError: this one picture cannot be used; the next may.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def is_address(text: str) -> bool:
    """Whether a text names an address rather than a camera or a file; one letter and a colon is a drive."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", text) is not None


def absent_source(text: str) -> Source:
    """What stands for a source that is not there now, with the name and label that it would have.

    Raises:
        DataError: an address that can never be one.
    """
    if is_address(text) or (text.isascii() and text.isdigit()):
        return _find(text)[0]
    path = Path(text)
    known = path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return Source("video", _plain(path.stem if known else path.resolve().name), text, str(path.absolute()))


def find_sources(texts: Sequence[str | Path | int]) -> list[Source]:
    """Sources that a command line names; a folder or pattern gives its pictures as one source and each video as one.

    Raises:
        DataError: nothing there, a scheme that is not allowed, or something that is no source.
    """
    if not texts:
        raise DataError("no source was named", expected=_EXPECTED)
    found = [source for text in texts for source in _find(str(text))]
    taken: set[str] = set()
    unique = []
    for source in found:
        name, count = source.name, 1
        while name in taken:  # a file may itself be called a-2
            count += 1
            name = f"{source.name}-{count}"
        taken.add(name)
        unique.append(replace(source, name=name))
    return unique


def _find(text: str) -> list[Source]:
    if text.isascii() and text.isdigit():
        return [Source("camera", f"camera{text}", f"camera {text}", int(text))]
    if is_address(text):
        return [_address(text)]
    path = Path(text)
    if path.is_dir():
        files, base = [path_ for path_ in sorted(path.rglob("*")) if path_.is_file()], path
    elif path.is_file():
        files, base = [path], path.parent
        if path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES:
            raise DataError(f"{text} is neither a picture nor a video", got=path.suffix or "no suffix", expected=_KINDS)
    elif not glob.has_magic(text):
        raise DataError(f"there is no file or folder {text}", expected=_EXPECTED)
    else:
        # Not Path.glob: that takes no absolute patterns.
        files = sorted(p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file())  # noqa: PTH207
        fixed = [i for i, part in enumerate(path.parts) if glob.has_magic(part)]
        base = Path(*path.parts[: fixed[0]]) if fixed else path.parent
    pictures = tuple(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    if not pictures and not videos:
        raise DataError("no pictures or videos to look at", got=text, expected=_EXPECTED,
                        mend=f"kinds that can be read: {_KINDS}")  # fmt: skip
    name = _plain(path.stem if path.is_file() else base.resolve().name)
    return [Source("pictures", name, text, pictures=pictures, base=base)] * bool(pictures) + [
        Source("video", _plain(video.stem), str(video), str(video.absolute())) for video in videos
    ]


def _address(text: str) -> Source:
    """An address, taken apart so that only scheme, host, port and path are ever shown."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        mend = "write scheme://host:port/path, and special signs of a password as %40 and the like"
        raise DataError("not an address", got=text.partition(":")[0] + ":…", expected=_EXPECTED, mend=mend) from None
    if parts.scheme.lower() not in SCHEMES or not host:
        near = difflib.get_close_matches(parts.scheme.lower(), SCHEMES, 1)
        raise DataError("sources of this kind are not opened", got=f"{parts.scheme}:…",
                        expected=", ".join(f"{scheme}://host/…" for scheme in SCHEMES),
                        mend=f"did you mean {near[0]}://host/…?" if near else
                        "name a file by its path alone")  # fmt: skip
    label = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}{'?…' if parts.query else ''}"
    return Source("url", _plain(f"{host}{f'-{port}' if port else ''}{parts.path}"), label, text)


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")[:80] or "source"


def open_source(source: Source) -> Capture:
    """Open a source of any kind.

    Raises:
        DataError: it is not there, cannot be read, or states more than 50 megapixels.
    """
    return PictureCapture(source.pictures) if source.kind == "pictures" else VideoCapture(source)


class PictureCapture:
    """Pictures one after another, each a frame; see `Capture`.

    Args:
        base: a folder that they lie below, which errors do not tell.
    """

    fps = 0.0

    def __init__(self, pictures: Sequence[Path], base: Path | None = None) -> None:
        self.frames, self._base = len(pictures), base
        self._left = iter(pictures)

    def read(self) -> Shot | None:
        """See `Capture.read`."""
        path = next(self._left, None)
        if path is None:
            return None
        return Shot(read_image(path, str(path.relative_to(self._base)) if self._base else None), None, path)

    def close(self) -> None:
        """Nothing is held open between pictures."""


class VideoCapture:
    """A video file, a camera or an address through OpenCV's FFmpeg and V4L2; see `Capture`.

    Args:
        source: not pictures.
        timeout_ms: for connecting, and for each frame of an address.

    Raises:
        DataError: it is not there, cannot be read, or states more than 50 megapixels.
    """

    def __init__(self, source: Source, *, timeout_ms: int = TIMEOUT_MS) -> None:
        # FFmpeg's own lines would break the progress bar, and may show an address with its password.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._label = source.label
        if source.kind == "video":
            _check_file(source)
        elif source.kind == "url":
            _check_reachable(source, timeout_ms / 1e3)
        if isinstance(source.target, int):
            check_camera(source.target)
            backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
            self._capture = cv2.VideoCapture(source.target, backend)
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        else:
            # One thread for a live source: frame threads hold pictures back.
            threads = [cv2.CAP_PROP_N_THREADS, 1] if source.live else []
            with _naming(source.host):
                self._capture = cv2.VideoCapture(source.target, cv2.CAP_FFMPEG, [
                    cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms,
                    *threads])  # fmt: skip
        if not self._capture.isOpened():
            raise DataError(f"cannot open {source.label}", got="no pictures in it, or no answer",
                            mend=_MEND[source.kind])  # fmt: skip
        # Once is enough: OpenCV gives every frame of one connection at this size, whatever size it comes in.
        width, height = self._get(cv2.CAP_PROP_FRAME_WIDTH), self._get(cv2.CAP_PROP_FRAME_HEIGHT)
        if width * height > MAX_PIXELS:
            self.close()
            raise DataError(f"the pictures of {source.label} are too large", got=f"{width:.0f}x{height:.0f}",
                            expected=f"at most {MAX_PIXELS:,} pixels")  # fmt: skip
        self.fps = fps if 0 < (fps := self._get(cv2.CAP_PROP_FPS)) <= 1000 else 0.0
        # Streams without an end state a negative number.
        self.frames = max(0, int(self._get(cv2.CAP_PROP_FRAME_COUNT))) if source.kind != "camera" else 0

    def read(self) -> Shot | None:
        """See `Capture.read`."""
        try:
            good, image = self._capture.read()
        except cv2.error as error:
            raise DataError(f"cannot decode {self._label}", got=str(error.err)) from None
        if not good or image is None:
            return None
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        return Shot(np.asarray(image, np.uint8), self._get(cv2.CAP_PROP_POS_MSEC) / 1e3)

    def close(self) -> None:
        """See `Capture.close`."""
        self._capture.release()

    def _get(self, what: int) -> float:
        value: Any = self._capture.get(what)
        return float(value)


@contextmanager
def _naming(host: str) -> Iterator[None]:
    """HTTP requests of what is opened inside name this host.

    FFmpeg's options are the process's, so one source is opened at a time; OpenCV opens them so anyway.
    """
    with _opening:
        before = os.environ.get(FFMPEG_OPTIONS)
        if host:
            os.environ[FFMPEG_OPTIONS] = "|".join(filter(None, (before, f"headers;Host: {host}\r\n")))
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(FFMPEG_OPTIONS, None)
            else:
                os.environ[FFMPEG_OPTIONS] = before


def check_camera(number: int) -> None:
    """Find out without opening it whether there may be a camera of that number; only Linux tells.

    Raises:
        DataError: there is none.
    """
    if sys.platform != "linux" or Path(f"/dev/video{number}").exists():
        return
    there = sorted(int(path.name[5:]) for path in Path("/dev").glob("video*") if path.name[5:].isdigit())
    raise DataError(f"there is no camera {number}", got=f"/dev/video{number} does not exist",
                    expected=f"one of {', '.join(map(str, there))}" if there else "a camera; none is connected",
                    mend="plug it in, or name another number")  # fmt: skip


def _check_file(source: Source) -> None:
    try:
        with Path(str(source.target)).open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise DataError(f"cannot read {source.label}", got=error.strerror) from None
    if not start:
        raise DataError(f"{source.label} is empty", got="0 bytes", expected="a video", mend="copy or record it again")
    if start.startswith(_PLAY_LISTS):
        raise DataError(f"{source.label} is a play list", got="a text that names other files",
                        expected="a video itself", mend="name the files or addresses themselves")  # fmt: skip


def _check_reachable(source: Source, timeout_s: float) -> None:
    """Connect once before OpenCV does: it opens one source at a time, so one dead host would hold up all the others."""
    parts = urlsplit(str(source.target))
    address = (parts.hostname or "", parts.port or SCHEMES[parts.scheme.lower()])
    try:
        socket.create_connection(address, timeout_s).close()
    except OSError as error:
        reason = error.strerror or ("no answer" if isinstance(error, TimeoutError) else type(error).__name__)
        raise DataError(f"cannot open {source.label}", got=f"{address[0]}:{address[1]}: {reason}",
                        mend="check that it is on, and its address") from None  # fmt: skip
