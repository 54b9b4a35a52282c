"""Which pictures a batch is about: sources as people name them, as entries of a list, as parts of equal work."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from hawkeye.data import IMAGE_SUFFIXES
from hawkeye.errors import DataError
from hawkeye.scale.places import Place, is_url, list_url, one_form, open_file
from hawkeye.store_files import shown

_TABLES = frozenset({".parquet", ".pq"})
_EXPECTED = "pictures, folders, patterns, Parquet files, or URLs of such"
_PICTURE_COLUMNS, _ADDRESS_COLUMNS = ("image", "picture", "bytes", "data"), ("image", "path", "uri", "url", "file")
_SPLIT_ABOVE = 4  # row groups larger than this many parts are cut, though each piece reads the group again
_SCHEMA = pa.schema([("address", pa.string()), ("first", pa.int64()), ("pictures", pa.int64())])


class Entry(NamedTuple):
    """Something to look at.

    Attributes:
        address: absolute path or URL of a picture, or of a Parquet file that holds pictures.
        first: first row of a Parquet file; -1 for a picture.
        pictures: how many.
    """

    address: str
    first: int = -1
    pictures: int = 1


class Part(NamedTuple):
    """A piece of work, and a partition of the result.

    Attributes:
        number: of the partition.
        manifest: name of the list that it is in.
        group: row group of the list.
        pictures: how many.
    """

    number: int
    manifest: str
    group: int
    pictures: int

    @property
    def file(self) -> str:
        """Name of the partition."""
        return f"part-{self.number:06d}.parquet"


def find_entries(sources: Sequence[str], *, column: str | None, chunk: int) -> Iterator[Entry]:
    """Everything that the sources name, in a fixed order; an entry may come twice where sources overlap.

    Args:
        sources: see `_EXPECTED`.
        column: of Parquet files; left out, it is told by its name and type.
        chunk: pictures that a part is to have.

    Raises:
        DataError: a source that holds no pictures, or a Parquet file without such a column.
        StoreError, StorageError: a place does not answer, or refuses.
    """
    for source in sources:
        found = False
        for address in _addresses(source):
            suffix = PurePosixPath(address.partition("?")[0]).suffix.lower()
            entries: Iterable[Entry] = ()
            if suffix in IMAGE_SUFFIXES:
                entries = (Entry(address),)
            elif suffix in _TABLES:
                entries = _rows(address, column, chunk)
            for entry in entries:
                found = True
                yield entry
        if not found:
            raise DataError("no pictures to look at", got=shown(source), expected=_EXPECTED,
                            mend=f"kinds that can be read: {' '.join(sorted(IMAGE_SUFFIXES | _TABLES))}")  # fmt: skip


def _addresses(source: str) -> Iterator[str]:
    if is_url(source):
        yield from list_url(source)
    elif Path(source).is_dir():
        for folder, folders, files in os.walk(os.path.abspath(source)):  # noqa: PTH100  # of millions: no Path for each
            folders.sort()
            yield from (f"{folder}/{name}" for name in sorted(files))
    elif Path(source).is_file():
        yield str(Path(source).absolute())
    elif glob.has_magic(source):
        for name in sorted(glob.iglob(source, recursive=True)):  # noqa: PTH207  # Path.glob takes no absolute patterns
            if Path(name).is_file():
                yield str(Path(name).absolute())
    else:
        raise DataError("there is nothing to look at", got=source, expected=_EXPECTED)


def _rows(address: str, column: str | None, chunk: int) -> Iterator[Entry]:
    with open_file(address) as file:
        table = open_table(file, address)
        name, holds_pictures = picture_column(table.schema_arrow, column, address)
        if holds_pictures:
            sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
            yield from (Entry(address, first, count) for first, count in _ranges(sizes, chunk))
            return
        for batch in table.iter_batches(batch_size=10_000, columns=[name]):
            for text in batch.column(0).to_pylist():
                if text:
                    yield Entry(_beside(address, text))


def _beside(table: str, text: str) -> str:
    """An address in a table; a relative one counts from where the table lies."""
    if not is_url(text) and not Path(text).is_absolute():
        text = f"{table.rpartition('/')[0]}/{text}"
    return one_form(text) if is_url(text) else text


def _ranges(sizes: Sequence[int], chunk: int) -> Iterator[tuple[int, int]]:
    """Rows that belong together: whole row groups where they are not too large."""
    first = count = 0
    for size in sizes:
        if size > _SPLIT_ABOVE * chunk:
            if count:
                yield first, count
                first, count = first + count, 0
            for start in range(0, size, chunk):
                yield first + start, min(chunk, size - start)
            first += size
            continue
        count += size
        if count >= chunk:
            yield first, count
            first, count = first + count, 0
    if count:
        yield first, count


def open_table(file: Any, address: str) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        DataError: it is none, or damaged.
    """
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shown(address)} is not a Parquet file", got=str(error).splitlines()[0],
                        mend="write it again") from None  # fmt: skip


def picture_column(schema: pa.Schema, column: str | None, address: str) -> tuple[str, bool]:
    """The column with pictures, and whether it holds their bytes; otherwise it holds their addresses.

    Raises:
        DataError: there is none, or it is of another type.
    """

    def holds(field: pa.Field) -> bool | None:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # as Hugging Face's data sets have it
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return True
        return False if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None

    if column is not None:
        wanted = [schema.field(column)] if column in schema.names else []
    else:
        binary = [f for f in schema if holds(f)]
        named = [f for name in _PICTURE_COLUMNS for f in binary if f.name == name]
        texts = [f for name in _ADDRESS_COLUMNS for f in schema if f.name == name and holds(f) is False]
        wanted = named or (binary if len(binary) == 1 else []) or texts
    kind = holds(wanted[0]) if wanted else None
    if kind is None:
        columns = ", ".join(f"{f.name}: {f.type}" for f in schema)
        raise DataError(f"{shown(address)} has no column of pictures", got=columns,
                        expected="one with bytes of picture files, or with their paths or URLs",
                        mend="name it with --column")  # fmt: skip
    return wanted[0].name, kind


def read_rows(address: str, first: int, count: int, column: str | None) -> Iterator[tuple[str, bytes | None]]:
    """Names and bytes of pictures in a Parquet file; None where a row has none.

    Raises:
        DataError: the file is gone, damaged, or has fewer rows than it had.
    """
    with open_file(address) as file:
        table = open_table(file, address)
        name, _ = picture_column(table.schema_arrow, column, address)
        groups, row, begin = [], 0, None
        for i in range(table.num_row_groups):
            size = table.metadata.row_group(i).num_rows
            if row < first + count and row + size > first:
                groups.append(i)
                begin = row if begin is None else begin
            row += size
        if row < first + count or begin is None:
            raise DataError(f"{shown(address)} has been changed", got=f"{row} rows",
                            expected=f"{first + count} or more",
                            mend="name another --out for other pictures")  # fmt: skip
        place = begin
        for batch in table.iter_batches(batch_size=16, row_groups=groups, columns=[name]):
            for value in batch.column(0):
                if first <= place < first + count:
                    content = value.as_py()
                    content = content.get("bytes") if isinstance(content, dict) else content
                    yield f"{address}#{place}", content
                place += 1


# -- parts -------------------------------------------------------------------------------------------------------------


def pack(entries: Iterable[Entry], chunk: int) -> Iterator[list[Entry]]:
    """Entries in parts of about `chunk` pictures, in order; a range of a Parquet file is a part by itself."""
    part: list[Entry] = []
    for entry in entries:
        if part and (entry.first >= 0 or len(part) == chunk):
            yield part
            part = []
        if entry.first >= 0:
            yield [entry]
        else:
            part.append(entry)
    if part:
        yield part


def write_manifest(place: Place, name: str, parts: Iterable[Sequence[Entry]]) -> None:
    """Write a list of parts, a row group for each, whole or not at all."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, _SCHEMA) as writer:
        for part in parts:
            columns = [list(column) for column in zip(*part, strict=True)]
            writer.write_table(pa.table(columns, schema=_SCHEMA), row_group_size=len(part))
    place.write(name, buffer.getvalue())


def manifests(place: Place) -> list[str]:
    """Names of the lists of a batch, oldest first."""
    return [name for name in place.names() if name.startswith("pictures-") and name.endswith(".parquet")]


def read_parts(place: Place) -> list[Part]:
    """Every part of a batch."""
    parts: list[Part] = []
    for name in manifests(place):
        with place.open(name) as file:
            table = open_table(file, name)
            for group in range(table.num_row_groups):
                counts = table.read_row_group(group, columns=["pictures"]).column(0)
                parts.append(Part(len(parts), name, group, sum(counts.to_pylist())))
    return parts


def read_part(place: Place, part: Part) -> list[Entry]:
    """The entries of a part."""
    with place.open(part.manifest) as file:
        rows = open_table(file, part.manifest).read_row_group(part.group).to_pylist()
    return [Entry(**row) for row in rows]


def known(place: Place) -> set[tuple[str, int]]:
    """What is in the lists of a batch already."""
    found: set[tuple[str, int]] = set()
    for name in manifests(place):
        with place.open(name) as file:
            table = open_table(file, name).read(columns=["address", "first"])
        found.update(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))
    return found
