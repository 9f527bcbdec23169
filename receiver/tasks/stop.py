# SPDX-License-Identifier: Apache-2.0
"""What ends the work of one group, and of no other.

One group's trouble is that group's. Whatever comes out of its files or of a task that works on it
ends here, at the edge of each supervision: what has it in hand *stops* the group, named, with its
reason in the status, and the other groups do not notice.

    stops the group     recovery, apply, intake (but for what is the agent's fault, and for a full
                        disk, which is waited for), a rollback or a drop that met a fault of the
                        program, a scrub that met one, a look of the audit at its history
    fails by itself,    what only reads: a view, a restore, a list, a plan, a scrub that the disk
    named               refuses. Who ordered it is told; the group goes on

A group that is stopped applies nothing, refuses its agent with the reason, and is not looked at any
more; what it had recovered goes on being served. It stays so until the receiver is started anew,
or `history accept` mends what it had stopped for at its opening: a person has to look. The first
reason counts.

What the groups share (catalog, audit) may fail too: that stops orders, and no group.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from replicator.base.errors import ReplicatorError
from replicator.base.trouble import anew, is_bug, words_of

_log = structlog.get_logger(__name__)


class Stop:
    """Of one group. `told` is called, on the loop, when it has been stopped."""

    def __init__(self, group: str, told: Callable[[], None]) -> None:
        self._group = group
        self.told = told
        self.reason: ReplicatorError | None = None
        """Why nothing is done any more, until the receiver is started anew."""

    def because(self, error: Exception, what: str) -> ReplicatorError:
        """Stops the group; what to tell whoever waits. `what` has failed."""
        said = words_of(error)
        _log.error(
            "group.stopped" if self.reason is None else "group.failed",
            group=self._group,
            what=what,
            reason=said.message,
            hint=said.hint,
            exc_info=error if is_bug(error) else None,
        )
        if self.reason is None:
            self.reason = anew(said)
            self.told()
        return anew(said)

    def lift(self) -> None:
        """An operator's order has mended what it was."""
        self.reason = None
        _log.warning("group.goes_on", group=self._group)

    def check(self) -> None:
        """Raises what has stopped the group."""
        if self.reason is not None:
            raise anew(self.reason)
