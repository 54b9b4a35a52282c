"""Counts as CSV, JSON or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter

from hawkeye.errors import ConfigError
from hawkeye.lazy import load
from hawkeye.serve.schemas import CountRow

FORMATS: Mapping[str, str] = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
}
COLUMNS = ("start", "time", "seconds", "source", "rule", "class", "measure", "value", "covered")
_ROWS = TypeAdapter(Sequence[CountRow])


def write(rows: Sequence[CountRow], kind: str) -> bytes:
    """Counts as a file's bytes with the columns `COLUMNS`; a span without data has no value: empty or null, never 0.

    Args:
        kind: a key of `FORMATS`.

    Raises:
        ConfigError: another kind.
        MissingExtraError: parquet without the [parquet] extra.
    """
    if kind not in FORMATS:
        raise ConfigError(f"counts cannot be written as {kind!r}", got=kind, expected=", ".join(FORMATS))
    if kind == "json":
        return _ROWS.dump_json(rows, by_alias=True)
    values = [(row.start, row.time, row.seconds, row.source, row.rule, row.class_name, row.measure, row.value,
               row.covered) for row in rows]  # fmt: skip
    if kind == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows(tuple(plain(v) if isinstance(v, str) else v for v in value) for value in values)
        return text.getvalue().encode()
    arrow, parquet = load("pyarrow"), load("pyarrow.parquet")
    number, word = arrow.float64(), arrow.string()
    types = (number, arrow.timestamp("s", tz="UTC"), number, word, word, word, word, number, number)
    columns = list(zip(*values, strict=True)) or [()] * len(COLUMNS)
    columns[1] = tuple(int(row.start) for row in rows)
    arrays = [arrow.array(column, kind_) for column, kind_ in zip(columns, types, strict=True)]
    sink = arrow.BufferOutputStream()
    parquet.write_table(arrow.Table.from_arrays(arrays, names=list(COLUMNS)), sink)
    return bytes(sink.getvalue().to_pybytes())


def plain(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
