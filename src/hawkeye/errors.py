"""Every error that Hawkeye raises on purpose, as one tree.

HawkeyeError                     exit 1   something went wrong while working
├── InputError                   exit 2   what was given cannot be used; the message says how to mend it
│   ├── CheckpointError                   not a detector checkpoint, truncated, wrong task
│   ├── ModelError                        not an exported detector, or one that does not fit
│   ├── DataError                         data.yaml, labels, images
│   ├── ConfigError                       a recipe or an option
│   ├── BoundsError                       a bound that no network can meet
│   ├── RunDirError                       an output folder that belongs to something else
│   ├── StorageError                      cannot write: full disk, no permission
│   ├── StoreError                        a model store: unreachable, damaged, or another release came first
│   └── MissingExtraError                 an optional part is not installed
├── ExportError                  exit 1   an exported graph does not compute what the network does
└── DivergenceError              exit 1   training broke down and the guards gave up

A missed gate is not an error: everything is written, and the command ends with exit code 3 (`EXIT_GATE_MISSED`).
Neither is an input that has changed since the last run: `hawkeye plan --check` ends with exit code 4 (`EXIT_CHANGED`).
"""

from __future__ import annotations

EXIT_GATE_MISSED = 3
EXIT_CHANGED = 4


class HawkeyeError(Exception):
    """Base of all errors: says what was got, what was expected, and how to mend it.

    Args:
        summary: what is wrong, in one sentence without a full stop.
        got: what was found.
        expected: what would have been right.
        mend: what to do about it.
    """

    exit_code = 1

    def __init__(self, summary: str, *, got: object = None, expected: object = None, mend: str | None = None) -> None:
        parts = [summary]
        if got is not None:
            parts.append(f"got: {got}")
        if expected is not None:
            parts.append(f"expected: {expected}")
        if mend is not None:
            parts.append(f"to mend it: {mend}")
        super().__init__("\n  ".join(parts))
        self.summary, self.got, self.expected, self.mend = summary, got, expected, mend


class InputError(HawkeyeError):
    """What was given cannot be used."""

    exit_code = 2


class CheckpointError(InputError):
    """Not a YOLO detector checkpoint that can be compressed."""


class ModelError(InputError):
    """Not an exported detector, or one that does not fit the request."""


class DataError(InputError):
    """A data set, its labels or its images cannot be used."""


class ConfigError(InputError):
    """A recipe or an option cannot be used."""


class BoundsError(InputError):
    """A bound that no network can meet, or that leaves nothing to do."""


class RunDirError(InputError):
    """An output folder that holds another run."""


class StorageError(InputError):
    """The disk refused: full, read-only, or no permission."""


class StoreError(InputError):
    """A model store that cannot be used as asked."""


class MissingExtraError(InputError):
    """An optional part of Hawkeye is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(
            f"this command needs the [{extra}] extra",
            got=f"Python package {module!r} is not installed",
            mend=f"pip install 'hawkeye[{extra}]'",
        )


class ExportError(HawkeyeError):
    """An exported graph differs from the network it came from, or cannot be made."""


class DivergenceError(HawkeyeError):
    """Training diverged and every guard has been used up."""
