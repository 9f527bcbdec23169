# SPDX-License-Identifier: Apache-2.0
"""What the records without disk content say: bodies of cut, sync, detach, domain-xml. No I/O.

Encoded as msgpack maps, so that a reader without this code can read them and a later version may
add fields. Decoding is strict in types and bounds: a body that does not fit is damage.
The receiver's own bodies (batches, streams) live with the history, in receiver/history.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from journal.record import NO_DISK, Record, RecordType
from replicator.base.errors import DamageError

Name = Annotated[str, Meta(min_length=1, max_length=63)]
Index = Annotated[int, Meta(ge=0, lt=NO_DISK)]
Size = Annotated[int, Meta(gt=0, le=(1 << 63) - 1)]  # msgspec has no larger bound
Duration = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
LABEL_LIMIT = 200
Label = Annotated[str, Meta(min_length=1, max_length=LABEL_LIMIT)]
CutKind = Literal["crash", "application"]


class Member(msgspec.Struct, frozen=True):
    """A disk instance of a cut. `instance` is the identity that a name alone is not: another
    disk may come back under the same name."""

    disk: Index
    name: Name
    instance: str
    size: Size
    complete: bool


class Cut(msgspec.Struct, frozen=True, omit_defaults=True):
    """A consistent cut of the whole group. Only if all members are complete may the receiver
    make a point of it. `clock_step_ns` notes a step of the wall clock since the cut before;
    `monotonic_ns` is what the machine's other clock showed, which has no steps and means something
    in one boot alone; 0: not told (by a splitter of version 0.1.0).
    `expire_ns`: how long its point is to survive thinning, from its making; 0: nothing is stated.

    Fields at their default are left out: most cuts are of members and kind alone."""

    kind: CutKind
    members: list[Member]
    label: Label | None = None
    clock_step_ns: int = 0
    expire_ns: Duration = 0
    monotonic_ns: Duration = 0


class SyncBegin(msgspec.Struct, frozen=True):
    """From here on the disk is incomplete. `from_zero`: the disk is known to be all zeroes, and
    what is not written before its sync-end is zero at the replica too."""

    name: Name
    instance: str
    size: Size
    from_zero: bool = False
    reason: str = ""


class SyncEnd(msgspec.Struct, frozen=True):
    """The disk is complete: the replica equals it at this LSN."""

    name: Name
    instance: str


class Detach(msgspec.Struct, frozen=True):
    """The disk leaves the group; points before keep it."""

    name: Name
    instance: str


class DomainXml(msgspec.Struct, frozen=True):
    """The machine that the disks belong to, from here on."""

    domain: Name
    xml: str


Body = Cut | SyncBegin | SyncEnd | Detach | DomainXml
BODIES: dict[int, type[Body]] = {
    RecordType.CUT: Cut,
    RecordType.SYNC_BEGIN: SyncBegin,
    RecordType.SYNC_END: SyncEnd,
    RecordType.DETACH: Detach,
    RecordType.DOMAIN_XML: DomainXml,
}

_encoder = msgspec.msgpack.Encoder()
_T = TypeVar("_T")


def encode_body(body: msgspec.Struct) -> bytes:
    return _encoder.encode(body)


def decode_body(kind: type[_T], record: Record, lsn: int) -> _T:
    """The body of a record that is known to be of that kind. Raises DamageError."""
    try:
        return msgspec.msgpack.decode(record.payload, type=kind)
    except msgspec.DecodeError as error:
        raise DamageError(
            f"record at LSN {lsn} holds no valid {kind.__name__.lower()}: {error}"
        ) from error
