"""A model store: immutable versions, and a log that says which of them is the released one.

    STORE/versions/<row>-<hash>/version.json   what it is, where it came from, the hash of every file beside it
                               /model/         the artefact, which `Detector` opens as it is
                               /report.json, records/, NOTICE.md
    STORE/releases/000001.json                 the log: the entry with the highest number names the released version

A version's name holds the hash of all its files, so the same name is the same content. An entry of the log is created
under the next number, which one of several processes wins; nothing is ever changed afterwards. A process that is killed
leaves at worst a version that no entry names yet.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError, field_validator

from hawkeye.artifact import Record, digest
from hawkeye.errors import StoreError
from hawkeye.records import Saved
from hawkeye.store_files import Files, open_files, shown

VERSION = "version.json"
MODEL = "model"


class StoredFile(Record):
    """Content of one file of a version."""

    sha256: str
    bytes: int


class Link(Record):
    """One step from the checkpoint to the version's model."""

    stage: str
    name: str
    sha256: str
    parent_sha256: str | None
    key: str
    created: str
    hawkeye: str


class Version(Saved):
    """What lies in `version.json`.

    Attributes:
        id: name of the version: its row and the hash over its files.
        row: of the run's table.
        artifact_sha256: of the model.
        lineage: from the imported checkpoint to the model, each link naming the one before as its parent.
        identity: content hashes of checkpoint and data, picture size and seed.
        recipe: settings of the run; paths are left to their last part.
        gates: as they were judged.
        passed: whether all were.
        despite: why it was released although a gate was missed.
        licence: of the weights.
        files: every file beside this one.
    """

    schema_version: Literal[1] = 1
    id: str
    row: str
    artifact_sha256: str
    lineage: tuple[Link, ...]
    identity: dict[str, Any]
    recipe: dict[str, Any]
    labels: bool
    gates: dict[str, Any]
    passed: bool
    despite: str | None
    licence: str
    hawkeye: str
    created: str
    files: dict[str, StoredFile]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, StoredFile]) -> dict[str, StoredFile]:
        # A store may be somebody else's: nothing of it may be written outside the cache.
        if any(PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts for path in files):
            raise ValueError("a file outside the version")
        return files


class Release(Saved):
    """An entry of the log."""

    schema_version: Literal[1] = 1
    number: int
    version: str
    previous: str | None
    action: Literal["release", "rollback"]
    note: str | None
    at: str


def open_store(url: str, *, files: Files | None = None) -> Store:
    """A store at a folder or URL; a folder that is not there is an empty store.

    Raises:
        StoreError: not an address, or not reachable.
        MissingExtraError: fsspec or its driver is not installed.
    """
    return Store(url, files or open_files(url))


def released(url: str | Path) -> Path:
    """Folder of the released model's artefact; a remote one is fetched once and kept in the cache.

    Raises:
        StoreError: nothing is released, the store cannot be reached, or its content has been changed.
    """
    store = open_store(str(url))
    current = store.current()
    if current is None:
        raise StoreError(f"nothing is released in {shown(str(url))}", mend="hawkeye release RUN --store STORE")
    return store.folder(store.version(current.version))


def is_store(folder: Path) -> bool:
    """Whether a local folder is a store with at least one release."""
    return (folder / "releases").is_dir() and (folder / "versions").is_dir()


class Store:
    """See the head of this file."""

    def __init__(self, url: str, files: Files) -> None:
        self.url, self.files = shown(url), files

    def history(self) -> list[Release]:
        """The log, oldest entry first.

        Raises:
            StoreError: cannot be reached, or an entry is damaged.
        """
        return [self._entry(name) for name in self._entries()]

    def current(self) -> Release | None:
        """The newest entry of the log; None where nothing is released.

        Raises:
            StoreError: cannot be reached, or the entry is damaged.
        """
        names = self._entries()
        return self._entry(names[-1]) if names else None

    def versions(self) -> list[Version]:
        """All finished versions, oldest first."""
        found = [self._version(name) for name in self.files.names("versions")]
        return sorted((v for v in found if v is not None), key=lambda v: (v.created, v.id))

    def version(self, name: str) -> Version:
        """A version by its name, an unambiguous beginning of its name or hash, "released" or "previous".

        Raises:
            StoreError: none of that name, or several.
        """
        if name == "released":
            current = self.current()
            if current is None:
                raise StoreError(f"nothing is released in {self.url}", mend="hawkeye release RUN --store STORE")
            name = current.version
        elif name == "previous":
            current = self.current()
            if current is None or current.previous is None:
                raise StoreError(f"no version was released in {self.url} before this one")
            name = current.previous
        names = self.files.names("versions")
        if name not in names:
            near = [n for n in names if n.startswith(name) or n.rpartition("-")[2].startswith(name)]
            if len(near) != 1 or not name:
                raise StoreError(f"{self.url} has no single version {name!r}", got=", ".join(near or names) or "none",
                                 mend="`hawkeye list --store STORE` shows them")  # fmt: skip
            name = near[0]
        found = self._version(name)
        if found is None:
            raise StoreError(f"version {name} of {self.url} is not finished", got=f"no {VERSION}",
                             mend="release it again")  # fmt: skip
        return found

    def before(self) -> Release:
        """The entry that stood before the released version was first released: where a rollback goes.

        Raises:
            StoreError: there is none.
        """
        history = self.history()
        first = next((i for i, entry in enumerate(history) if entry.version == history[-1].version), 0)
        if first == 0:
            raise StoreError(f"{self.url} has no release to go back to", got=f"{len(history)} entries in its log")
        return history[first - 1]

    def taken_back(self) -> list[str]:
        """Versions that the rollbacks since the last release went back from, the newest rollback first."""
        rollbacks = itertools.takewhile(lambda entry: entry.action == "rollback", reversed(self.history()))
        return [entry.previous for entry in rollbacks if entry.previous is not None]

    def add(self, version: Version, source: Path) -> Version:
        """Put a version into the store from a local folder of its files; the same one again changes nothing."""
        existing = self._version(version.id)
        if existing is not None:
            return existing
        version.save(source / VERSION)
        self.files.publish(f"versions/{version.id}", source, VERSION)
        made = self._version(version.id)
        assert made is not None  # publish returned
        return made

    def point(self, version: Version, *, expected: Release | None, action: Literal["release", "rollback"],
              note: str | None = None) -> Release:  # fmt: skip
        """Make a version the released one, if `expected` still is the newest entry of the log.

        Raises:
            StoreError: another release or rollback came first; nothing is changed then.
        """
        self.verify(version)
        entry = Release(
            number=expected.number + 1 if expected else 1,
            version=version.id,
            previous=expected.version if expected else None,
            action=action,
            note=note,
            at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        try:
            self.files.create(_entry_path(entry.number), entry.model_dump_json(indent=2).encode() + b"\n")
        except FileExistsError:
            winner = self._entry(_entry_path(entry.number).rpartition("/")[2])
            raise StoreError(
                f"another {winner.action} came first", got=f"{winner.version} is released since {winner.at}",
                expected=f"{entry.previous or 'nothing'} to be the released version",
                mend="compare with the new one: start `hawkeye optimize` again, then release",
            ) from None  # fmt: skip
        return entry

    def folder(self, version: Version) -> Path:
        """Local folder of a version's model, verified; fetched into the cache where the store is remote.

        Raises:
            StoreError: a file is missing or not what was stored.
        """
        return self.content(version) / MODEL

    def content(self, version: Version) -> Path:
        """Local folder of everything in a version, verified; see `folder`."""
        place = self.files.local(f"versions/{version.id}")
        if place is not None:
            check_content(version, _content_of(place, version), self.url)
            return place
        kept = _cache() / digest(self.url)[:16] / version.id
        if kept.is_dir():
            try:
                check_content(version, _content_of(kept, version), str(kept))
                return kept
            except StoreError:  # a damaged copy is fetched again
                shutil.rmtree(kept)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as name:
            fetched = Path(name) / version.id
            for path in version.files:
                content = self._read(f"versions/{version.id}/{path}")
                target = fetched / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            check_content(version, _content_of(fetched, version), self.url)
            try:
                fetched.rename(kept)
            except OSError:
                if not kept.is_dir():  # another process may have fetched it at the same time
                    raise
        return kept

    def verify(self, version: Version) -> None:
        """Read every file of a version back from the store and hold it against its hash.

        Raises:
            StoreError: a file is missing or not what was stored.
        """
        contents = ((path, self._read(f"versions/{version.id}/{path}")) for path in version.files)
        check_content(version, contents, self.url)

    def _read(self, path: str) -> bytes:
        try:
            return self.files.read(path)
        except FileNotFoundError:
            raise StoreError(f"{self.url} has lost a file", got=f"no {path}",
                             mend="release that version again, or roll back to another") from None  # fmt: skip

    def _entries(self) -> list[str]:
        return [name for name in self.files.names("releases") if name.endswith(".json") and name[:-5].isdigit()]

    def _entry(self, name: str) -> Release:
        try:
            return Release.model_validate_json(self._read(f"releases/{name}"))
        except ValidationError as error:
            raise StoreError(f"releases/{name} of {self.url} is damaged", got=error.errors()[0]["msg"],
                             mend="remove that file to fall back to the entry before it") from None  # fmt: skip

    def _version(self, name: str) -> Version | None:
        try:
            return Version.model_validate_json(self.files.read(f"versions/{name}/{VERSION}"))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise StoreError(f"versions/{name}/{VERSION} of {self.url} is damaged", got=error.errors()[0]["msg"],
                             mend="restore it, or remove that version") from None  # fmt: skip


def check_content(version: Version, contents: Iterator[tuple[str, bytes]], where: str) -> None:
    """Hold files against what `version.json` says of them, and that against the version's name.

    Raises:
        StoreError: a file is not what was stored.
    """
    if not version.id.endswith(version_hash(version.files)):
        raise StoreError(f"version {version.id} of {where} has been changed", got=f"another list of files in {VERSION}",
                         mend="roll back to another version, or release it again elsewhere")  # fmt: skip
    for path, content in contents:
        if hashlib.sha256(content).hexdigest() != version.files[path].sha256:
            raise StoreError(f"version {version.id} of {where} has been changed", got=f"another content of {path}",
                             expected="the content that was released",
                             mend="roll back to another version, or restore that file")  # fmt: skip


def version_hash(files: dict[str, StoredFile]) -> str:
    """Twelve digits over the content of all files."""
    return digest({path: file.sha256 for path, file in files.items()})[:12]


def _content_of(folder: Path, version: Version) -> Iterator[tuple[str, bytes]]:
    for path in version.files:
        try:
            yield path, (folder / path).read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {path} of version {version.id}", got=error.strerror,
                             mend="restore it, or roll back to another version") from None  # fmt: skip


def _entry_path(number: int) -> str:
    return f"releases/{number:06d}.json"


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hawkeye" / "store"
