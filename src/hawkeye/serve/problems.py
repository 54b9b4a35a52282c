"""What can go wrong between a request and its answer; each has one HTTP status.

HawkeyeError
├── NotFound    404   there is nothing of that name
├── Denied      403   this role, or this token, may not
├── Busy        503   over capacity; says when to try again
└── InputError  400   see `hawkeye.errors`
"""

from __future__ import annotations

from collections.abc import Iterable

from hawkeye.errors import HawkeyeError


class NotFound(HawkeyeError):
    """There is nothing of that name."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str] = ()) -> None:
        shown = list(known)
        listed = ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "")
        super().__init__(f"there is no such {kind}", got=name[:100], expected=listed or None)


class Denied(HawkeyeError):
    """Whoever asks may not."""


class Busy(HawkeyeError):
    """All places are taken.

    Attributes:
        retry_s: seconds after which trying again may help.
    """

    def __init__(self, retry_s: float) -> None:
        super().__init__("the service is busy", got="every place is taken", expected="fewer requests at once",
                         mend=f"try again in {retry_s:.1f} s")  # fmt: skip
        self.retry_s = retry_s
