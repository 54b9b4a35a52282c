"""Where a model store keeps its files: a plain folder, or any place that fsspec knows. The only importer of fsspec.

What a store needs of a place is little: whole files, lists of names, and one operation that only one of several may
win, `create`. A plain folder does it by a hard link to a file that is already whole. Amazon S3 and Google Cloud Storage
do it by conditional writes; a place without such a write is refused for releasing, as two releases might both win.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from hawkeye.errors import MissingExtraError, StorageError, StoreError

_LEFTOVER = ".incoming-"
_LEFTOVER_S = 24 * 3600.0  # a release takes seconds, so what is older belongs to one that was killed


class Files(Protocol):
    """A place for files, by path relative to the store."""

    def read(self, path: str) -> bytes:
        """Content of a file; FileNotFoundError where there is none."""

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; empty where there is no such folder."""

    def create(self, path: str, content: bytes) -> None:
        """Write a file that is not there yet, whole or not at all; FileExistsError where it is there."""

    def publish(self, folder: str, source: Path, last: str) -> None:
        """Copy a local folder of files so that `last` is there only when everything else is."""

    def local(self, folder: str) -> Path | None:
        """The folder on this machine, where the store is one."""


def open_files(url: str) -> Files:
    """A plain folder, `file://` included, or a place that fsspec knows.

    Raises:
        MissingExtraError: a URL, and fsspec or its driver is not installed.
        StoreError: a kind of URL that fsspec does not know.
    """
    if "://" not in url:
        return LocalFiles(Path(url).expanduser())
    if url.startswith("file://"):
        return LocalFiles(Path(url.removeprefix("file://")))
    return RemoteFiles(url)


def shown(url: str) -> str:
    """A store's address for messages and records, without the password that a URL may hold."""
    return re.sub(r"//[^/@]*@", "//***@", url).partition("?")[0]


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem of a URL, and the path in it.

    Raises:
        MissingExtraError: fsspec is not installed.
        StoreError: not an address, or its driver is not installed.
    """
    try:
        import fsspec
    except ModuleNotFoundError:
        raise MissingExtraError("store", "fsspec") from None
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as error:  # fsspec names the package that brings the driver
        raise StoreError(f"{shown(url)} needs a driver that is not installed", got=error,
                         mend="pip install what is named there") from None  # fmt: skip
    except Exception as error:  # drivers raise kinds of their own
        raise StoreError(f"{shown(url)} is not an address that can be used", got=error,
                         expected="a folder, or a URL such as s3://bucket/folder") from None  # fmt: skip
    return fs, str(root)


def names_in(fs: Any, folder: str) -> list[str]:
    """Names in a folder of a filesystem of fsspec, sorted, as they are now; empty where there is no such folder."""
    fs.invalidate_cache()  # another process may have written in the meantime
    try:
        found = fs.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)


class LocalFiles:
    """A plain folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes:
        with _reading(str(self.root)):
            return (self.root / path).read_bytes()

    def names(self, folder: str) -> list[str]:
        with _reading(str(self.root)):
            try:
                found = [path.name for path in (self.root / folder).iterdir()]
            except FileNotFoundError:
                return []
        return sorted(name for name in found if not name.startswith("."))

    def create(self, path: str, content: bytes) -> None:
        target = self.root / path
        with _writing(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=_LEFTOVER)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).chmod(0o444)
                # A link, as a rename would replace what another process has put there.
                target.hardlink_to(name)
                _sync(target.parent)
            finally:
                Path(name).unlink(missing_ok=True)

    def publish(self, folder: str, source: Path, last: str) -> None:
        target = self.root / folder
        with _writing(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(target.parent)
            incoming = Path(tempfile.mkdtemp(dir=target.parent, prefix=_LEFTOVER))
            try:
                for path in _files(source):
                    copy = incoming / path.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
                    copy.chmod(0o444)
                    with copy.open("rb") as file:
                        os.fsync(file.fileno())
                for made in [*(p for p in incoming.rglob("*") if p.is_dir()), incoming]:
                    _sync(made)
                incoming.chmod(0o755)
                try:
                    incoming.rename(target)  # the one moment at which the version comes to be
                except OSError:
                    if not (target / last).is_file():
                        raise
                _sync(target.parent)  # another process may have been first: then it is there already
            finally:
                shutil.rmtree(incoming, ignore_errors=True)

    def local(self, folder: str) -> Path | None:
        return self.root / folder


class RemoteFiles:
    """Any place that fsspec knows, such as `s3://bucket/models`."""

    def __init__(self, url: str) -> None:
        self.url = shown(url)
        self.fs, self.root = filesystem(url)

    def read(self, path: str) -> bytes:
        with self._errors("read"):
            self.fs.invalidate_cache()
            content: bytes = self.fs.cat_file(f"{self.root}/{path}")
        return content

    def names(self, folder: str) -> list[str]:
        with self._errors("read"):
            return names_in(self.fs, f"{self.root}/{folder}")

    def create(self, path: str, content: bytes) -> None:
        kind: Any = type(self.fs)
        write = kind._pipe_file if getattr(kind, "async_impl", False) else kind.pipe_file
        # fsspec's own fallback looks first and writes then, which lets two writers win.
        if write.__module__ in ("fsspec.spec", "fsspec.asyn") or "mode" not in signature(write).parameters:
            raise StoreError(f"{self.url} cannot create a file that only one writer may win",
                             got=f"the driver {kind.__name__}", expected="a folder, s3:// or gs://",
                             mend="release into a folder, and copy that")  # fmt: skip
        with self._errors("written"):
            self._make_parent(path)
            self.fs.pipe_file(f"{self.root}/{path}", content, mode="create")

    def publish(self, folder: str, source: Path, last: str) -> None:
        with self._errors("written"):
            for path in sorted(_files(source), key=lambda p: p.relative_to(source).as_posix() == last):
                place = f"{folder}/{path.relative_to(source).as_posix()}"
                self._make_parent(place)
                self.fs.pipe_file(f"{self.root}/{place}", path.read_bytes())

    def local(self, folder: str) -> Path | None:
        return None

    def _make_parent(self, path: str) -> None:
        self.fs.makedirs(f"{self.root}/{path}".rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError, StoreError):
            raise
        except Exception as error:  # each driver has its own: no network, no such bucket, no permission
            raise StoreError(f"{self.url} cannot be {what}", got=f"{type(error).__name__}: {error}",
                             mend="check the address, the network and your permission; nothing was lost") from error  # fmt: skip # noqa: E501


@contextlib.contextmanager
def _reading(root: str) -> Iterator[None]:
    try:
        yield
    except (PermissionError, NotADirectoryError) as error:
        raise StorageError(f"cannot read the store {root}", got=error.strerror, expected="a folder that may be read",
                           mend="correct the address or the permission") from None  # fmt: skip


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write the store {root}", got=error.strerror,
                           expected="a folder with room, permission and hard links",
                           mend="correct that, then start the same command again; nothing was lost") from error  # fmt: skip # noqa: E501


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(f"{_LEFTOVER}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFTOVER_S:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
