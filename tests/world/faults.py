# SPDX-License-Identifier: Apache-2.0
"""Faults of the simulated disk that hit one call: errors, short writes, the death of a process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

# Calls that change something, and so can be the step before which a process dies.
CHANGING_CALLS = frozenset(
    (
        "create",
        "pwritev",
        "punch",
        "truncate",
        "datasync",
        "make_directory",
        "remove_directory",
        "replace",
        "unlink",
        "sync_directory",
    )
)
ALL_CALLS = CHANGING_CALLS | {"open", "pread", "names"}


class Stopped(BaseException):
    """The process died here. No ordinary handler may catch it, as none catches a kill -9."""


@dataclass(slots=True)
class Failure:
    """The `nth` call (1 = the next) of one of `calls` fails with `errno`, or from then on all do.

    `under`: only calls on paths below it count. `written`: a pwritev is short instead of failing,
    after so many bytes.
    """

    calls: frozenset[str]
    nth: int
    errno: int
    forever: bool = False
    under: Path = Path("/")
    written: int | None = None
    seen: int = field(default=0, init=False)

    def strikes(self, call: str, path: Path) -> bool:
        if call not in self.calls or not path.is_relative_to(self.under):
            return False
        self.seen += 1
        return self.seen == self.nth or (self.forever and self.seen > self.nth)
