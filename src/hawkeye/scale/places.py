"""Where pictures are read from and results are written to: folders, or any place that fsspec knows.

A write is whole or not there: a rename in a folder, one upload on an object store. Trouble with one picture is that
picture's; trouble with the place itself (no network, no permission) stops the work, so that nothing is taken for done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol, TypeVar

from hawkeye.artifact import write_bytes
from hawkeye.errors import DataError, StorageError, StoreError
from hawkeye.store_files import filesystem, names_in, shown

_TRIES, _PAUSE_S = 3, 1.0  # services answer "slow down" now and then
_T = TypeVar("_T")


class Place(Protocol):
    """A flat folder of files."""

    def names(self) -> list[str]:
        """Names of the files there, sorted; empty where there is no such place yet."""

    def open(self, name: str) -> IO[bytes]:
        """A file to read, with `seek`."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that it is there whole or not at all; it takes the place of one of that name."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


def is_url(text: str) -> bool:
    """Whether this is an address for fsspec and not a path."""
    return "://" in text


def open_place(where: str) -> Place:
    """A folder, or a place behind a URL.

    Raises:
        StoreError: not an address.
        MissingExtraError: fsspec is not installed.
    """
    return _Remote(where) if is_url(where) else _Folder(Path(where))


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        with _refusals(str(self._root), "read"):
            try:
                # What is being written has a hidden name.
                return sorted(e.name for e in os.scandir(self._root) if not e.name.startswith("."))
            except FileNotFoundError:
                return []

    def open(self, name: str) -> IO[bytes]:
        with _refusals(str(self._root), "read"):
            return (self._root / name).open("rb")

    def write(self, name: str, content: bytes) -> None:
        write_bytes(self._root / name, content)

    def remove(self, name: str) -> None:
        with _refusals(str(self._root), "written"):
            (self._root / name).unlink(missing_ok=True)


class _Remote:
    def __init__(self, url: str) -> None:
        self._url = shown(url)
        self._fs, self._root = filesystem(url)

    def names(self) -> list[str]:
        with _refusals(self._url, "read"):
            return names_in(self._fs, self._root)

    def open(self, name: str) -> IO[bytes]:
        with _refusals(self._url, "read"):
            return self._fs.open(f"{self._root}/{name}", "rb")  # type: ignore[no-any-return]

    def write(self, name: str, content: bytes) -> None:
        def upload() -> None:
            self._fs.makedirs(self._root, exist_ok=True)
            self._fs.pipe_file(f"{self._root}/{name}", content)

        with _refusals(self._url, "written"):
            _patiently(upload)

    def remove(self, name: str) -> None:
        with _refusals(self._url, "written"), suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")


def one_form(url: str) -> str:
    """The URL as listing its folder would write it, so that the same file has one name."""
    fs, path = filesystem(url)
    return str(fs.unstrip_protocol(path))


def read_url(url: str) -> bytes:
    """Content of a file behind a URL.

    Raises:
        DataError: there is no such file.
        StoreError: the place does not answer, or refuses.
    """
    fs, path = filesystem(url)
    with _refusals(shown(url), "read"):
        try:
            content: bytes = _patiently(lambda: fs.cat_file(path))
        except FileNotFoundError:
            raise DataError(f"cannot read {shown(url)}", got="no such file") from None
    return content


def open_file(address: str) -> IO[bytes]:
    """A local file or one behind a URL, to read.

    Raises:
        DataError: there is no such file.
        StoreError, StorageError: the place does not answer, or refuses.
    """
    with _refusals(shown(address), "read"):
        try:
            if not is_url(address):
                return Path(address).open("rb")
            fs, path = filesystem(address)
            return fs.open(path, "rb")  # type: ignore[no-any-return]
        except (FileNotFoundError, IsADirectoryError):
            raise DataError(f"cannot read {shown(address)}", got="no such file") from None


def list_url(url: str) -> list[str]:
    """Addresses of the file, or of all files below the folder or matching the pattern, that a URL names.

    Raises:
        DataError: there is nothing.
        StoreError: the place does not answer, or refuses.
    """
    import glob

    fs, path = filesystem(url)

    def look() -> list[str]:
        if glob.has_magic(path):
            return list(fs.glob(path))
        return [path] if fs.info(path)["type"] == "file" else list(fs.find(path))

    found, reason = [], ""
    with _refusals(shown(url), "read"):
        try:
            found = _patiently(look)
        except FileNotFoundError as error:  # fsspec says so of a web server that does not answer, too
            reason = f": {error.__cause__}" if error.__cause__ else ""
    if not found:
        raise DataError("there is nothing to look at", got=shown(url) + reason,
                        expected="a file, a folder, or a pattern")  # fmt: skip
    return sorted(str(fs.unstrip_protocol(name)) for name in found)


def _patiently(work: Callable[[], _T]) -> _T:
    """Try again after a pause; what is not there is told at once."""
    for left in range(_TRIES - 1, -1, -1):
        try:
            return work()
        except (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError):
            raise
        except Exception:  # each driver has its own kinds
            if not left:
                raise
            time.sleep(_PAUSE_S * (_TRIES - left))
    raise AssertionError("unreachable")


@contextmanager
def _refusals(where: str, what: str) -> Iterator[None]:
    """Make one clear error of a place that refuses or does not answer."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, DataError, StoreError, StorageError):
        raise
    except OSError as error:
        raise StorageError(f"{where} cannot be {what}", got=error.strerror or error,
                           mend="correct the address or the permission, then start the same command again: it goes on "
                           "where it was") from error  # fmt: skip
    except Exception as error:  # each driver has its own: no network, no such bucket, no permission
        raise StoreError(f"{where} cannot be {what}", got=f"{type(error).__name__}: {error}",
                         mend="check the address, the network and your permission, then start the same command again: "
                         "it goes on where it was") from error  # fmt: skip
