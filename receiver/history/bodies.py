# SPDX-License-Identifier: Apache-2.0
"""What the records of the history say. No I/O.

A history is segments (kind 3) of records, chained like a log. Its LSNs are its own ("positions"
here), not those of the streams that were applied. Each segment begins with STATE, then batches:

    STATE | BATCH_BEGIN image* BATCH_COMMIT [BATCH_APPLIED] | POINTS_DROPPED | BATCH_BEGIN …

An image is a WRITE, PACKED_WRITE (compressed) or ZERO record with the content that the batch
replaces, whole 4-KiB blocks (the last one of a disk may be short; then a PACKED_WRITE's length says
more than there is); `disk` is the disk's slot, `sequence` the batch's number.

* BATCH_BEGIN fixes everything about the batch before anything is overwritten: the exact range of
  the stream, which blocks, and the state of the group behind it. A redo uses exactly that.
* STATE is the state of the group at the start of its segment, so that a segment can be read, and
  those before it removed, without another.
* POINTS_DROPPED says which points retention has given up although their batches are still there.

The bodies state their own position: one that was written elsewhere is not taken for this one,
where the chain is not at hand to tell (headers of sealed segments are read without their images).
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from journal.record import Record
from receiver.points.values import PointKind
from replicator.base.errors import DamageError

BatchKind = Literal["log", "zero", "mark", "rollback"]

Count = Annotated[int, Meta(ge=0)]
UNKNOWN_SUM = 0
NOT_COUNTED = -1


class MemberBody(msgspec.Struct, frozen=True, array_like=True):
    slot: Count
    name: str
    instance: str
    size_bytes: Count


class PointBody(msgspec.Struct, frozen=True):
    """See receiver.points.values.Point; `until_ns` is kept with what follows it (`Held`). `images`
    are names of images, by the members' names, where those are others."""

    sequence: Count
    time_ns: Count
    kind: PointKind
    label: str | None
    lsn: Count
    ordinal: Count
    clock_step_ns: int
    consistent: bool
    members: list[MemberBody]
    domains: dict[str, str]
    received_ns: Count = 0
    expire_ns: Count = 0
    monotonic_ns: Count = 0
    made_ns: Count = 0
    images: dict[str, str] = {}


class DiskBody(msgspec.Struct, frozen=True):
    """A disk behind the batch. `name` is its image's; `called` what the source calls it, empty
    where that is the same. `index` is what the stream calls it, None if the stream does not
    (any more). `zeroes_cleared` and `zeroes_added` say how the batch changed the zeroes that
    wait for the sync's end (first cleared, then added); in a STATE, added are all of them.
    `is_made_here`: its image was made by the receiver, so what nobody wrote is zero."""

    slot: Count
    name: str
    instance: str
    size_bytes: Count
    index: int | None
    syncing: bool
    complete: bool
    from_zero: bool
    sync_lsn: Count
    zeroes_cleared: bytes = b""
    zeroes_added: bytes = b""
    is_made_here: bool = False
    called: str = ""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """The point was still the newest, and nothing was written, until then: by the source's clock.
    `stood_ns`: for how long, by the receiver's counted clock; NOT_COUNTED where nobody did."""

    sequence: Count
    until_ns: Count
    stood_ns: int = NOT_COUNTED


class RollbackIntent(msgspec.Struct, frozen=True):
    """A rollback that was begun and has not ended: to point `target` with the first `writes` behind
    it; `before` was pinned."""

    target: Count
    before: Count
    writes: Count = 0


class DamagedBlocks(msgspec.Struct, frozen=True, array_like=True):
    """Blocks whose content is lost: what batch number `written` wrote (0: an older one than the
    history has) and batch `replaced` overwrote (0: none yet). See receiver.damage.damage."""

    slot: Count
    block: Count
    blocks: Count
    written: Count
    replaced: int


class Mend(msgspec.Struct, frozen=True, array_like=True):
    """Points up to number `upto` were received at `at_ns` at the latest, whatever their stamps say:
    see receiver.retention.stamps."""

    upto: Count
    at_ns: Count


class GroupBody(msgspec.Struct, frozen=True):
    """The group's state, as far as it must survive. Points younger than `lock_ns` must not go."""

    stream: bytes
    ordinal: Count
    lsn: Count
    closed_ordinal: Count
    generation: Count
    next_point: Count
    next_slot: Count
    last_time_ns: Count
    last_point: Count
    last_point_lsn: Count
    point_holds: bool
    disks: list[DiskBody]
    domains: dict[str, str]
    rollback: RollbackIntent | None = None
    rolled_back: bool = False
    lock_ns: Count = 0
    damage: tuple[DamagedBlocks, ...] = ()
    mends: tuple[Mend, ...] = ()


class BatchBegin(msgspec.Struct, frozen=True):
    """`extents` is the table of receiver.history.images.
    `group` is the state behind this batch. `texts` holds domain XML seen for the first time, by
    digest. `zeroes` (kind "zero") is what it zeroes: packed ranges by slot. `sums` are the xxh3-64
    of what each block holds behind the batch, little-endian, in the order of the table's blocks;
    empty where that is not known, UNKNOWN_SUM for a block of which it is not."""

    position: Count
    number: Count
    kind: BatchKind
    start_lsn: Count
    extents: bytes
    group: GroupBody
    point: PointBody | None = None
    held: Held | None = None
    texts: dict[str, str] = {}
    zeroes: dict[int, bytes] = {}
    sums: bytes = b""


class BatchCommit(msgspec.Struct, frozen=True):
    """The batch's records are whole. Says so only if the chain leads here."""

    position: Count
    number: Count
    begin: Count


class BatchApplied(msgspec.Struct, frozen=True):
    """The replica holds the batch, durably."""

    position: Count
    number: Count


class PointsDropped(msgspec.Struct, frozen=True):
    position: Count
    sequences: list[int]


class StandsFor(msgspec.Struct, frozen=True):
    """This segment replaces those up to position `end`, where the chain was `chain` and the
    digest of the last of them `digest`."""

    end: Count
    chain: Count
    digest: bytes


class StateBody(msgspec.Struct, frozen=True):
    """`texts` are the domains' XML by digest: those of the
    state and of every point in the segments before whose texts this one took over. `imageless`:
    batches up to that number have lost their images here, and what they wrote is known by the base
    of sums alone (0: none has, or an older version did it)."""

    position: Count
    next_batch: Count
    group: GroupBody
    texts: dict[str, str]
    stands_for: StandsFor | None = None
    imageless: Count = 0


_T = TypeVar("_T", bound=msgspec.Struct)
_encoder = msgspec.msgpack.Encoder()


def encode(body: msgspec.Struct) -> bytes:
    return _encoder.encode(body)


def decode(kind: type[_T], record: Record, where: str) -> _T:
    """Raises DamageError."""
    try:
        return msgspec.msgpack.decode(record.payload, type=kind)
    except msgspec.DecodeError as error:
        raise DamageError(f"{where}: holds no valid {kind.__name__}: {error}") from error
