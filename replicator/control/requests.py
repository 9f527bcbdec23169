# SPDX-License-Identifier: Apache-2.0
"""What the control API is asked, as types. No I/O.

The contract of `types` holds for these as well. What a request cannot say by its types it checks
itself (`check`), before anything is done.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from replicator.base.errors import NotFoundError, UsageError
from replicator.base.names import is_name
from replicator.base.units import parse_duration_ns

EXPIRE_SECONDS_MAX = 100 * 366 * 86_400
POINTS_LIMIT = 50
WRITES_WINDOW = "2s"
WRITES_LIMIT = 200


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A struct that orders something: a field that is not understood refuses the order."""

    @property
    def is_plan(self) -> bool:
        """Only says what would be done, where that is an order of its own (orders.Order.plan)."""
        return False

    def check(self) -> None:
        """Raises ReplicatorError for what types cannot say."""


class NoRequest(Request, frozen=True, kw_only=True):
    """Of an order that is asked with its path alone."""


class PointsRequest(Request, frozen=True, kw_only=True):
    """From `since` to `until`, texts as people type them, both inclusive. `zone` is where they were
    typed: an IANA name, or an offset like +01:00."""

    since: str | None = None
    until: str | None = None
    zone: str | None = None


class PointPageRequest(PointsRequest, frozen=True, kw_only=True):
    """Of those the newest `limit`, of those with a lower number than `before`."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = POINTS_LIMIT
    before: Annotated[int, msgspec.Meta(ge=1)] | None = None


class WritesRequest(Request, frozen=True, kw_only=True):
    """The `limit` single writes nearest to `around`, a time or a point, within `window` (a
    duration) on either side. `zone` as for points."""

    around: str
    window: str = WRITES_WINDOW
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = WRITES_LIMIT
    zone: str | None = None

    def check(self) -> None:
        self.window_ns()

    def window_ns(self) -> int:
        """Raises UsageError."""
        return _duration_ns("window", self.window)


class AuditRequest(Request, frozen=True, kw_only=True):
    """The newest `limit` entries since a time. `zone` as for points."""

    since: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    zone: str | None = None


class ScrubRequest(Request, frozen=True, kw_only=True):
    """`rate` is bytes a second, null: as configured."""

    wait: bool = True
    rate: int | None = None


class MarkRequest(Request, frozen=True, kw_only=True):
    """Make a point now; `wait` until it is durable at the receiver. `quiesce`: with the guests'
    filesystems frozen. `expire_seconds`: it survives thinning for that long; 0: not stated. There
    is a label, or `quiesce`, or both: a bare crash-consistent point is made every interval.
    `timeout_seconds`: for how long to wait; the mark stays under way after that."""

    label: str | None = None
    wait: bool = False
    timeout_seconds: Annotated[int, msgspec.Meta(ge=1, le=EXPIRE_SECONDS_MAX)] = 600
    quiesce: bool = False
    expire_seconds: Annotated[int, msgspec.Meta(ge=0, le=EXPIRE_SECONDS_MAX)] = 0

    def check(self) -> None:
        if self.label is None and not self.quiesce:
            raise UsageError("a mark has a label, or quiesces, or both")


class ViewRequest(Request, frozen=True, kw_only=True):
    """`listen`: an address to serve on over TCP, with TLS unless `plain` (loopback only). `allow`:
    names in certificates that may read it, besides the agents of the group.
    `overlay_max_bytes`: what the writes of a writable view may take. `unverified`: also of a
    point that is not verified yet."""

    group: str
    at: str
    zone: str | None = None
    writable: bool = False
    overlay_max_bytes: int | None = None
    lifetime_seconds: float | None = None
    listen: str | None = None
    plain: bool = False
    allow: list[str] = []
    unverified: bool = False

    def check(self) -> None:
        require_group(self.group)


class RollbackRequest(Request, frozen=True, kw_only=True):
    """`force_detach`: also while a source feeds the group; its connection is ended."""

    to: str
    dry_run: bool = False
    force_detach: bool = False
    zone: str | None = None

    @property
    def is_plan(self) -> bool:
        return self.dry_run


class RestoreRequest(Request, frozen=True, kw_only=True):
    """`to` is an absolute path on the receiver's machine; it is created. `resume`: go on with what
    an interrupted restore left there. `verify`: read the images back. `unverified`: also of a
    point that is not verified yet."""

    at: str
    to: str
    zone: str | None = None
    format: Literal["raw", "qcow2"] = "raw"
    resume: bool = False
    verify: bool = True
    unverified: bool = False

    def check(self) -> None:
        if not self.to.startswith("/") or "\0" in self.to:
            raise UsageError("a restore goes to an absolute path")


class ForgetRequest(Request, frozen=True, kw_only=True):
    """`confirm` is the group's name once more. `break_lock` takes a reason (receiver)."""

    confirm: str = ""
    break_lock: bool = False
    reason: str = ""
    dry_run: bool = False


class ReloadRequest(Request, frozen=True, kw_only=True):
    """Read the configuration anew and take it over. `removes_too`: also what takes a group or a
    disk away, which is refused otherwise."""

    dry_run: bool = False
    removes_too: bool = False


class DropRequest(Request, frozen=True, kw_only=True):
    """Give up `points`, and those older than `older_than` (a duration). `break_lock`: also what
    is locked; then `reason` says why."""

    points: list[str] = []
    older_than: str | None = None
    dry_run: bool = False
    break_lock: bool = False
    reason: str = ""
    zone: str | None = None

    def require_choice(self) -> None:
        """Raises UsageError where it gives up nothing."""
        if not self.points and self.older_than is None:
            raise UsageError("says neither which points nor how old", hint="name points, or an age")


class AcceptAuditRequest(Request, frozen=True, kw_only=True):
    """Begin the audit anew, of which nothing is left. `reason` says why it does not come back."""

    reason: str


class AcceptClockRequest(Request, frozen=True, kw_only=True):
    """The machine's time is right: age by it. `reason` is needed where locks end sooner by that."""

    reason: str = ""
    dry_run: bool = False


class UnlockRequest(Request, frozen=True, kw_only=True):
    """Take the lock down to what the configuration says. `break_lock` must be true."""

    break_lock: bool
    reason: str


class AcceptRequest(Request, frozen=True, kw_only=True):
    """Go on without what a group has stopped for. `reason` says why it does not come back."""

    reason: str


def require_group(name: str) -> None:
    """Raises NotFoundError for what cannot be the name of a group."""
    if not is_name(name):
        raise NotFoundError(f"no group {name[:80]!r}")


def _duration_ns(field: str, text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise UsageError(f"{field}: {error}") from None
