# SPDX-License-Identifier: Apache-2.0
"""What agent and receiver say to each other. No I/O.

Bodies are msgpack maps with the names below, so that a later version may add fields; FRAME alone
has a binary body (replicator.wire.frames). Values are checked for type and bound when they are
decoded, names and labels by their rules; what they *mean* (is this group fed by this agent?) is
for the session to judge.

The course of a session (a: agent, r: receiver; protocol.py has it as a table):

    a HELLO                      who I am, what I replicate, the highest generation I have seen
    r WELCOME                    what I hold: stream, durable LSN, chain there, closed ordinals
    a OPEN   r OPENED            this stream, from that LSN; the disks of it that are in a sync
    a FRAME*, HOLD*              the log, in order; "the last point holds until T"
    r ACK*                       durable and applied LSN, points that are new since the last ACK
    r SYNC_KEY, a DIGESTS_WANTED, r DIGESTS*, DIGESTS_DONE    for each disk in a sync
    a OPEN   r OPENED            the next stream, after all frames of the one before
    a LABEL  r LABEL_STATE       is this label free?
    either PING → PONG, ERROR (then close)

A PING may carry what its sender says of the group (`said`): the words of replicator.states.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from replicator.base.errors import ReplicatorError, from_name
from replicator.base.names import LABEL_BYTES_MAX
from replicator.wire.frames import Frame
from replicator.wire.limits import (
    DIGEST_BYTES,
    DIGESTS_PER_MESSAGE,
    MAX_DISKS,
    POINTS_PER_ACK,
    PROTOCOL,
    SYNC_KEY_BYTES,
    ZERO_RUN_BLOCKS,
)

U64 = Annotated[int, Meta(ge=0)]  # msgpack itself ends at 64 bits
Lsn = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
DiskIndex = Annotated[int, Meta(ge=0, lt=0xFFFF)]
DiskSize = Annotated[int, Meta(gt=0, le=(1 << 63) - 1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")]
Label = Annotated[str, Meta(min_length=1, max_length=LABEL_BYTES_MAX)]
Text = Annotated[str, Meta(max_length=2000)]
Uuid = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
Driver = Annotated[str, Meta(pattern=r"^[a-z]{1,32}\Z")]
PointKind = Literal["crash", "application", "before-rollback", "rollback"]


class MessageType(IntEnum):
    HELLO = 1
    WELCOME = 2
    ERROR = 3
    OPEN = 4
    OPENED = 5
    FRAME = 6
    ACK = 7
    HOLD = 8
    SYNC_KEY = 9
    DIGESTS = 10
    DIGESTS_WANTED = 11
    DIGESTS_DONE = 12
    LABEL = 13
    LABEL_STATE = 14
    PING = 15
    PONG = 16


class OfferedDisk(msgspec.Struct, frozen=True):
    """A disk that the agent means to replicate; its size must be that of the replica, if any."""

    name: Name
    size: DiskSize
    instance: str = ""


class Hello(msgspec.Struct, frozen=True):
    """`agent` must be one of the certificate's DNS SANs. `instance` is the identity of the
    agent's state directory: an agent that comes back replaces its own old connection, another
    one is refused. `protocol` is that of the sender."""

    agent: Name
    instance: Uuid
    group: Name
    driver: Driver
    generation_seen: Count
    disks: Annotated[list[OfferedDisk], Meta(max_length=MAX_DISKS)]
    protocol: Count = PROTOCOL
    version: Annotated[str, Meta(max_length=64)] = ""


class Point(msgspec.Struct, frozen=True):
    """A recovery point as the receiver numbers it. `lsn` is the end of its cut record, 0 for a
    point that no cut made; `until_ns` is how far an idle group has carried it. `ordinal` is that of
    the stream in which it was cut; 0: not told."""

    sequence: Count
    time_ns: Count
    kind: PointKind
    lsn: Lsn = 0
    label: Label | None = None
    until_ns: Count = 0
    ordinal: Count = 0


class Welcome(msgspec.Struct, frozen=True):
    """What the receiver holds. `stream` is None where no stream may be resumed (none came yet, or
    the last one was closed); then `durable_lsn` and `chain` mean nothing.

    `ordinal` is the highest ordinal the receiver has ever opened, `closed_ordinal` the highest
    that stays closed for ever; 0 for none (ordinals begin at 1).
    """

    receiver: Name
    generation: Count
    stream: Uuid | None
    ordinal: Count
    durable_lsn: Lsn
    chain: U64
    applied_lsn: Lsn
    closed_ordinal: Count
    next_point: Count
    points: Count = 0
    newest_point: Point | None = None
    protocol: Count = PROTOCOL
    version: Annotated[str, Meta(max_length=64)] = ""


class Error(msgspec.Struct, frozen=True):
    """The last word before a close: an error of replicator.base.errors by its name."""

    name: Annotated[str, Meta(max_length=64)]
    message: Text
    hint: Text = ""

    @classmethod
    def of(cls, error: ReplicatorError) -> Error:
        return cls(error.name, error.message[:2000], error.hint[:2000])

    def as_exception(self) -> ReplicatorError:
        return from_name(self.name, self.message, self.hint)


class Open(msgspec.Struct, frozen=True):
    """Frames from here on belong to `stream`, and begin at `start_lsn` where its chain is `chain`.

    Either the stream that WELCOME named, at exactly its durable LSN and chain; or a stream with an
    ordinal above every one the receiver knows, at its first LSN, whose first record is a
    sync-begin. The second also *ends* the stream before it: that one is closed for ever.

    `points_after`: of the stream that is resumed, tell all points behind this LSN again, whose ACK
    may have been lost; None: the newest few.
    """

    stream: Uuid
    ordinal: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    start_lsn: Lsn
    chain: U64
    points_after: Lsn | None = None


class SyncingDisk(msgspec.Struct, frozen=True):
    """A disk whose sync had begun (not from zero) and not ended at the LSN of the OPENED."""

    disk: DiskIndex
    name: Name
    size: DiskSize
    sync_lsn: Lsn


class Opened(msgspec.Struct, frozen=True):
    """Frames may come, from `durable_lsn` on (the start_lsn of the OPEN). So many points are told
    again in the ACKs that come next."""

    durable_lsn: Lsn
    syncing: Annotated[list[SyncingDisk], Meta(max_length=MAX_DISKS)] = []
    resent: Count = 0


class Ack(msgspec.Struct, frozen=True):
    """`durable_lsn`: survives the receiver's power loss. `points` are those made durable since
    the last ACK, in order; `points_total` is how many the group has now. `until_ns`: how far the
    newest point holds here, which is the answer to a HOLD; 0: not stated. An ACK that covers an LSN
    brings every point up to there, or comes behind one that did; of very many points a full ACK is
    followed by the rest."""

    durable_lsn: Lsn
    applied_lsn: Lsn
    points: Annotated[list[Point], Meta(max_length=POINTS_PER_ACK)] = []
    points_total: Count = 0
    until_ns: Count = 0


class Hold(msgspec.Struct, frozen=True):
    """Nothing was written between the log's end `lsn` and the time: the last point holds on."""

    lsn: Lsn
    until_ns: Count


class SyncKey(msgspec.Struct, frozen=True):
    """The secret of one sync in one session. `sync_lsn` (the LSN of its sync-begin record) tells
    this sync of the disk from its others. Everything durable at the OPENED, or up to and with
    the sync-begin, has been applied when this is sent."""

    disk: DiskIndex
    sync_lsn: Lsn
    key: Annotated[bytes, Meta(min_length=SYNC_KEY_BYTES, max_length=SYNC_KEY_BYTES)]


class DigestsWanted(msgspec.Struct, frozen=True):
    """The receiver may send digests of blocks below `end_block`; it only ever rises in a sync."""

    disk: DiskIndex
    sync_lsn: Lsn
    end_block: Count


class Digests(msgspec.Struct, frozen=True):
    """Replica blocks from `first_block` on, as they were with everything below `lsn` applied:
    either 16 bytes each, or a run of `zero_blocks` that hold only zeroes. In disk order."""

    disk: DiskIndex
    sync_lsn: Lsn
    first_block: Count
    lsn: Lsn
    digests: Annotated[bytes, Meta(max_length=DIGESTS_PER_MESSAGE * DIGEST_BYTES)] = b""
    zero_blocks: Annotated[int, Meta(ge=0, le=ZERO_RUN_BLOCKS)] = 0


class DigestsDone(msgspec.Struct, frozen=True):
    """The last block of the disk has been stated; or the receiver will state no more of them."""

    disk: DiskIndex
    sync_lsn: Lsn


class AskLabel(msgspec.Struct, frozen=True):
    label: Label


class LabelState(msgspec.Struct, frozen=True):
    """`point`: the one that has the label, so that an agent whose ACK was lost can ask again."""

    label: Label
    taken: bool
    point: Point | None = None


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one end can prove of the group by itself: its own verdict (replicator.states).

    From an agent also: `stamp_ns`, the newest stamp of the source's clock that it has seen, and
    `age_ns`, how long ago that was by a monotonic clock; and what its config promises."""

    state: Annotated[str, Meta(pattern=r"^[a-z-]{1,32}\Z")]
    reason: Text = ""
    remedy: Text = ""
    is_watched: bool = True
    stamp_ns: Count = 0
    age_ns: Count = 0
    interval_ns: Count = 0
    alarm_ns: Count = 0


class Ping(msgspec.Struct, frozen=True, omit_defaults=True):
    """Say that you are alive. An agent adds what its two clocks show at this moment, read together:
    UTC since 1970, and CLOCK_MONOTONIC (the splitter's, too); 0: not told. `stream` is captured
    now, in this boot of the machine: its stamps are by these clocks. `said` is for the session, the
    rest for the protocol."""

    wall_ns: Count = 0
    monotonic_ns: Count = 0
    stream: Uuid | None = None
    said: Said | None = None


class Pong(msgspec.Struct, frozen=True):
    """I am."""


Body = (
    Hello
    | Welcome
    | Error
    | Open
    | Opened
    | Ack
    | Hold
    | SyncKey
    | Digests
    | DigestsWanted
    | DigestsDone
    | AskLabel
    | LabelState
    | Ping
    | Pong
)
Message = Body | Frame

_BODIES: dict[MessageType, type[Body]] = {
    MessageType.HELLO: Hello,
    MessageType.WELCOME: Welcome,
    MessageType.ERROR: Error,
    MessageType.OPEN: Open,
    MessageType.OPENED: Opened,
    MessageType.ACK: Ack,
    MessageType.HOLD: Hold,
    MessageType.SYNC_KEY: SyncKey,
    MessageType.DIGESTS: Digests,
    MessageType.DIGESTS_WANTED: DigestsWanted,
    MessageType.DIGESTS_DONE: DigestsDone,
    MessageType.LABEL: AskLabel,
    MessageType.LABEL_STATE: LabelState,
    MessageType.PING: Ping,
    MessageType.PONG: Pong,
}
_TYPES: dict[type, MessageType] = {body: kind for kind, body in _BODIES.items()}
_TYPES[Frame] = MessageType.FRAME
assert set(_TYPES.values()) == set(MessageType)

_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(body) for kind, body in _BODIES.items()}


class BadBodyError(ValueError):
    """A body that does not fit its type. Never leaves the package: protocol.py names the peer."""


def type_of(message: Message) -> MessageType:
    return _TYPES[type(message)]


def encode_body(message: Message) -> list[bytes | bytearray | memoryview]:
    """The body in pieces, to be sent back to back."""
    if isinstance(message, Frame):
        return [message.header.pack(), message.data]
    return [_encoder.encode(message)]


def decode_body(kind: MessageType, body: bytes | bytearray | memoryview) -> Message:
    """Raises BadBodyError, for a frame DamageError. A Frame keeps the body's memory, and only its
    header has been checked."""
    try:
        if kind is MessageType.FRAME:
            return Frame.parse(body)
        return _decoders[kind].decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadBodyError(f"{kind.name}: {error}") from error
