# SPDX-License-Identifier: Apache-2.0
"""What the control API of agent and receiver answers, as types; `requests` has what it is asked.
No I/O.

The JSON of these structs is a contract: tools read it. Fields may be added, never renamed or
dropped. Times are RFC 3339, UTC, microseconds (`base.clock.rfc3339`), those of single writes
nanoseconds (`rfc3339_exact`); a text that names a point or write means the same when it is typed;
sizes and distances are bytes; durations are seconds. Texts that name a point or a time ("latest",
"#12", "10m ago") cross the API as they were typed: the receiver alone resolves them, and says what
it chose.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

import msgspec

Role = Literal["agent", "receiver"]
PointKind = Literal["crash", "application", "before-rollback", "rollback"]
T = TypeVar("T")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A struct that the far end may have added fields to: unknown ones are ignored."""


class Nothing(Message, frozen=True, kw_only=True):
    """It is done, and there is no more to say."""


class Point(Message, frozen=True, kw_only=True):
    """A recovery point.

    `sequence` is the receiver's number of it; null only in the answer to a mark that did not wait
    for the receiver. `until`: nothing was written between `time` and then, so the point stands for
    that whole span. `label` as it is typed: one that would be read as something else is
    `label:TEXT`.
    """

    sequence: int | None
    time: str
    until: str
    kind: PointKind
    label: str | None = None
    damaged: bool = False
    damage: str = ""
    """Why it cannot be served: which blocks of it are lost."""
    unverified: bool = False
    """It is not served as true yet: a scrub has to read the replica back first. Of a view, a
    restore: it was taken all the same."""
    made: str | None = None
    """When it was made by the receiver's clock, where that is known: `time` is the source's word,
    whose clock may have been set. `now` and `… ago` go by this."""
    clock_step_seconds: float | None = None
    """How far the source's clock was set since the point before; null: it was not."""


class PointPage(Message, frozen=True, kw_only=True):
    """Some of the points of a range, oldest first; `earlier` is how many of it lie in front of
    them: the page `before` the first of these has the newest of those."""

    points: list[Point]
    earlier: int


class MarkedPoint(Point, frozen=True, kw_only=True):
    """The answer to a mark."""

    frozen_seconds: float | None = None
    """How long the guests' filesystems were frozen for it; null: they were not."""
    notice: str | None = None
    """What a person should know of it, as: it is crash-consistent because a freeze failed."""


class Choice(Message, frozen=True, kw_only=True):
    """Which point a text named. `distance_seconds`: how long before the asked time the point's
    span ends; 0 where the time lies inside it, null where no time was asked for. With `writes` it
    is the state behind that many of the writes that follow the point, the last one of them at
    `write_time`; then the distance is from there."""

    asked: str
    point: Point
    distance_seconds: float | None = None
    writes: int = 0
    write_time: str | None = None
    local: str | None = None
    """The asked time in the zone of who asked."""
    notice: str = ""
    """What a person should know of it, as: single writes are not kept."""


class Write(Message, frozen=True, kw_only=True):
    """A write of a guest, and the text that stands for the state just behind it."""

    point: str
    time: str
    disk: str
    offset: int
    length: int
    kind: Literal["write", "zero"]


class Chosen(Message, Generic[T], frozen=True, kw_only=True):
    """The result of an order that names a point, with what was chosen for it."""

    choice: Choice
    result: T


class View(Message, frozen=True, kw_only=True):
    """A point's disks, served. `disks` holds an NBD URI for each disk name. A writable one has a
    throw-away overlay, which takes `overlay_bytes` now. `expires`: when it closes by itself. It
    shows the point with the first `writes` behind it."""

    id: str
    group: str
    point: Point
    disks: dict[str, str]
    writable: bool = False
    opened: str = ""
    expires: str | None = None
    overlay_bytes: int | None = None
    writes: int = 0


class RollbackPlan(Point, frozen=True, kw_only=True):
    """The point that a rollback would go to, and what it would change."""

    dry_run: bool = True
    changed_bytes: int
    """Bytes of the replica that differ from the point, counted in whole blocks."""
    disks: list[str]
    """The disks that would be touched: those of the point."""
    points_after: int
    """Points newer than this one. They stay reachable."""
    changed_blocks: int
    """The same in blocks of 4 KiB."""
    expected_seconds: float
    """From the rate of recent batches, or an assumed one before there were any."""
    fed_by: str | None = None
    """Who feeds the group: it takes `force_detach`, and that source has to resync."""


class RollbackResult(Point, frozen=True, kw_only=True):
    """The point of kind `rollback` that was made."""

    before: Point
    """The state just before, of kind `before-rollback`: a rollback to it is the undo."""


class RestoredImage(Message, frozen=True, kw_only=True):
    """`checksum` is the XXH3-128 of the sums of what it holds (docs/formats.md), in hex.
    `verified`: the image was read back and is what was written."""

    disk: str
    path: str
    format: Literal["raw", "qcow2"]
    size: int
    checksum: str
    verified: bool


class RestoreResult(Message, frozen=True, kw_only=True):
    point: Point
    files: list[str]
    """Absolute paths: `DIR/DISK.FORMAT` for each disk, `DIR/DOMAIN.xml` for each domain."""
    images: list[RestoredImage] = []


class BadPlace(Message, frozen=True, kw_only=True):
    """What a scrub found: a place of a file, and what it holds of which disk, where it does.
    `points` cannot be had for it, unless it is `healed`."""

    where: Literal["replica", "image", "history", "sums"]
    file: str
    offset: int
    disk: str
    block_offset: int
    length: int
    points: list[int]
    healed: bool
    problem: str


class ScrubReport(Message, frozen=True, kw_only=True):
    """A scrub: the one under way, or else the last one. `ended` is when the last one did, `good`
    when the last one that left nothing bad; null: never. `cancelled`: when the last one was given
    up by order, if it was. Bytes without a sum to check them by are
    `unverified_bytes`."""

    running: bool
    began: str | None
    ended: str | None
    good: str | None
    cancelled: str | None = None
    done_bytes: int
    total_bytes: int
    replica_bytes: int
    history_bytes: int
    unverified_bytes: int
    bad: list[BadPlace]


class DropResult(Message, frozen=True, kw_only=True):
    """The points that were given up; with `dry_run` those that would be. `freed_bytes` of the disk
    are free since then; `to_come_bytes`, about, will be when what is left has been put together."""

    points: list[Point]
    dry_run: bool
    freed_bytes: int = 0
    to_come_bytes: int = 0


class UnlockResult(Message, frozen=True, kw_only=True):
    """The lock of the group's history before and now."""

    group: str
    lock_seconds_before: float
    lock_seconds: float


class DiskStatus(Message, frozen=True, kw_only=True):
    name: str
    size: int
    synced_bytes: int | None = None
    """How far a sync under way has come; null outside a sync."""
    earlier_sizes: list[int] = []
    """Of images that the receiver keeps for points from before the disk was resized."""


class GroupStatus(Message, frozen=True, kw_only=True):
    """A group as one daemon sees it. Null: this daemon does not know, or there is none yet."""

    name: str
    state: str
    rpo_seconds: float | None = None
    durable_lsn: int | None = None
    applied_lsn: int | None = None
    points: int = 0
    newest_point: Point | None = None
    disks: list[DiskStatus]
    reason: str = ""
    """Why the group is in this state, where that needs saying."""
    remedy: str = ""
    """What a person does about it."""
    end_watched: bool | None = None
    """Of a group that is idle because its source ended: whether that was watched from its first
    sign on, so that its last point is the end."""
    unprotected_seconds: float | None = None
    """For how long this daemon has known of no point at all; null where there is one."""
    clock_offset_seconds: float | None = None
    """How far the source's wall clock is ahead of the receiver's (receiver)."""
    peer: str | None = None
    """The agent or receiver at the other end of a live connection."""
    lag_bytes: int | None = None
    """Log that is not durable at the receiver yet (agent), or not applied yet (receiver)."""
    spool_bytes: int | None = None
    history_bytes: int | None = None
    fine_bytes: int | None = None
    """Frames that are kept though they are applied, so that single writes are points."""
    fine_since: str | None = None
    """Since when they are; null where there are none."""
    oldest_point: Point | None = None
    window_seconds: float | None = None
    """Age of the oldest point, by the receiver's clock."""
    window_wanted_seconds: float | None = None
    """How far back `keep` reaches."""
    window_is_short: bool | None = None
    """Whether the budget has made the window shorter than that."""
    history_capacity_bytes: int | None = None
    forecast_seconds: float | None = None
    """How long a window the budget holds at the present rate of change; null while unknown."""
    lock_seconds: float | None = None
    """Points younger than this are given up for nothing."""
    locked_until: str | None = None
    """When the lock of the newest point ends; null without a lock."""
    scrub_ended: str | None = None
    """When the last scrub did."""
    scrub_progress: float | None = None
    """Of the scrub under way, from 0 to 1."""
    scrub_bad: int | None = None
    """Bad places that the last scrub could not heal."""
    damaged_points: int | None = None
    unverified_disks: list[str] = []
    """Those whose replica is not believed until a scrub has read it back."""
    unverified_points: int | None = None
    """Points that are not served as true until then."""
    scrub_rest_seconds: float | None = None
    """In which time the scrub under way ends, at most, at the rate that it has."""


class AcceptResult(Message, frozen=True, kw_only=True):
    """What `history accept` went on without (`gone`), and with: `points` can be had whole,
    `damaged_points` cannot; the next one is number `next_point`."""

    group: str
    gone: str
    points: int
    damaged_points: int
    next_point: int
    generation: int


class AuditAccepted(Message, frozen=True, kw_only=True):
    """The audit has begun anew, without so many entries that it once had."""

    lost_entries: int


class ClockStatus(Message, frozen=True, kw_only=True):
    """The receiver's counted clock, by which points age. `behind_seconds`: how far it is behind the
    machine's (`wall`); negative where that is behind. `why` is empty while it is good, and locks go
    by it as well."""

    state: Literal["good", "stepped", "unconfirmed"]
    wall: str
    counted: str
    behind_seconds: float
    why: str = ""


class ClockAccepted(Message, frozen=True, kw_only=True):
    """What accepting the machine's time did, with `dry_run` would do: points and locks age by so
    much at once. `points`: how many of each group are too old for it by then, where any are."""

    forward_seconds: float
    lock_forward_seconds: float
    takes_reason: bool
    """Locks end sooner by it."""
    points: dict[str, int]
    dry_run: bool
    clock: ClockStatus
    """As it is afterwards."""


class Leftover(Message, frozen=True, kw_only=True):
    """What lies here of a group that the configuration does not name. `bytes`: null while it is
    not known."""

    name: str
    bytes: int | None = None
    places: list[str] = []


class Status(Message, frozen=True, kw_only=True):
    role: Role
    name: str
    version: str = ""
    groups: list[GroupStatus]
    missing: list[str] = []
    """What the running splitter is too old for, until it is started anew (agent)."""
    audit_head: str | None = None
    """The digest of the audit's newest entry (receiver)."""
    audit_breaks: int = 0
    """Places where the audit's chain does not hold: it was tampered with, or is damaged."""
    certificate_not_after: str | None = None
    """When the certificate in use expires, or its CA if that is sooner."""
    certificate_warning: str = ""
    """What a person had better know of it: that it expires, or that what lies on the disk by now
    cannot be used."""
    leftovers: list[Leftover] = []
    """Nothing frees their room but `forget`."""
    orders_refused: str = ""
    """Why no order that changes something is carried out (receiver): the audit or the catalog,
    which its groups share, cannot be used or is gone; and what to do. Replication goes on."""
    clock: ClockStatus | None = None
    """The receiver's."""


class AuditRecord(Message, frozen=True, kw_only=True):
    """An order that changes something, or a fact about the audit; see docs/formats.md. `uid` and
    `pid` are null for what no person ordered."""

    sequence: int
    time: str
    order: str
    object: str
    argument: str
    uid: int | None
    pid: int | None
    outcome: str
    message: str


class AuditFault(Message, frozen=True, kw_only=True):
    """`file` and `offset` are null for what no single place shows."""

    file: str | None
    offset: int | None
    problem: str


class AuditVerdict(Message, frozen=True, kw_only=True):
    """What a verification of the audit found. `head` is the digest of the newest entry."""

    entries: int
    head: str
    faults: list[AuditFault]


class ErrorBody(Message, frozen=True, kw_only=True):
    """An error as the API carries it; `base.errors.from_name` makes it an exception again."""

    error: str
    message: str
    hint: str = ""


class Progress(Message, frozen=True, kw_only=True):
    """How far a long order has come; `total` 0 where that is not known."""

    done: int
    total: int
    what: str


class ForgetResult(Message, frozen=True, kw_only=True):
    """What is gone, or would go. `points` and `locked_points` are the receiver's. `notice`: what a
    person should look after."""

    group: str
    bytes: int
    points: int = 0
    locked_points: int = 0
    places: list[str] = []
    copies: list[str] = []
    """Block copies that were ended, as DOMAIN/TARGET (agent)."""
    notice: str = ""
    dry_run: bool = False


class ConfigChange(Message, frozen=True, kw_only=True):
    """`place` as people name it; values as they may stand in the file, "" where there is none.
    `live`: it holds from now on; else it waits for a restart of the daemon."""

    place: str
    kind: Literal["added", "removed", "changed"]
    before: str = ""
    after: str = ""
    live: bool = True


class ReloadResult(Message, frozen=True, kw_only=True):
    """What was (dry_run: would be) taken over, and what waits for a restart."""

    role: Role
    name: str
    changes: list[ConfigChange]
