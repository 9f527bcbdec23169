# SPDX-License-Identifier: Apache-2.0
"""A receiver that keeps everything in memory and distrusts what it is sent. No I/O.

Its fault model: it answers each message at once and is "durable" with every frame it took; what it
misses of a real one are delay, disks and history. It checks what a real one checks: frames continue
LSN and chain, streams open only by the rules, points come from cuts whose members are complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from journal.bodies import Cut, SyncBegin, decode_body
from journal.record import Record, RecordType
from replicator.base.errors import FencedError, UsageError
from replicator.wire.frames import Frame, FrameOpener
from replicator.wire.limits import DIGEST_BLOCK_BYTES
from replicator.wire.messages import (
    Ack,
    AskLabel,
    Digests,
    DigestsDone,
    DigestsWanted,
    Hold,
    LabelState,
    Message,
    Open,
    Opened,
    Ping,
    Point,
    SyncingDisk,
    SyncKey,
    Welcome,
)

KEY = b"s" * 32
RESENT_POINTS = 64


@dataclass
class FakeDisk:
    name: str
    content: bytearray
    sync_lsn: int | None = None  # in a sync since
    from_zero: bool = False
    pending: set[int] = field(default_factory=set)  # zero bytes kept aside
    stated: int = 0


@dataclass
class FakeReceiver:
    """One group."""

    generation: int = 0
    stream: str | None = None
    ordinal: int = 0
    closed_ordinal: int = 0
    durable_lsn: int = 0
    chain: int = 0
    disks: dict[int, FakeDisk] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    images: dict[int, dict[int, bytes]] = field(default_factory=dict)  # by point, by disk
    holds: list[Hold] = field(default_factory=list)
    opens: list[Open] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    pings: list[Ping] = field(default_factory=list)
    opener: FrameOpener = field(default_factory=FrameOpener)
    next_point: int = 1
    expects_begin: bool = False

    def welcome(self) -> Welcome:
        return Welcome(
            receiver="receiver-1",
            generation=self.generation,
            stream=self.stream,
            ordinal=self.ordinal,
            durable_lsn=self.durable_lsn,
            chain=self.chain,
            applied_lsn=self.durable_lsn,
            closed_ordinal=self.closed_ordinal,
            next_point=self.next_point,
            points=len(self.points),
            newest_point=self.points[-1] if self.points else None,
        )

    def roll_back(self) -> None:
        """As a real one: the stream is closed for ever, the generation rises."""
        self.closed_ordinal = self.ordinal
        self.stream = None
        self.generation += 1

    def receive(self, message: Message) -> list[Message]:
        """The answers. Raises what a real receiver would close the session with."""
        match message:
            case Open():
                return self._open(message)
            case Frame():
                return self._frame(message)
            case Hold():
                assert message.lsn == self.durable_lsn
                self.holds.append(message)
                total = len(self.points)
                return [Ack(self.durable_lsn, self.durable_lsn, [], total, message.until_ns)]
            case Ping():
                self.pings.append(message)
                return []
            case DigestsWanted():
                return self._digests(message)
            case AskLabel():
                found = [point for point in self.points if point.label == message.label]
                return [LabelState(message.label, bool(found), found[-1] if found else None)]
        raise AssertionError(f"not for a receiver: {message}")

    def _open(self, message: Open) -> list[Message]:
        self.opens.append(message)
        again: list[Point] = []
        if message.stream == self.stream:
            at = (message.ordinal, message.start_lsn, message.chain)
            if at != (self.ordinal, self.durable_lsn, self.chain):
                raise FencedError("that is not where this stream ends here")
            again = self._told_again(message)
        else:
            if message.ordinal <= max(self.ordinal, self.closed_ordinal):
                raise FencedError("this stream is closed")
            self.closed_ordinal = max(self.closed_ordinal, self.ordinal)
            self.stream, self.ordinal = message.stream, message.ordinal
            self.durable_lsn, self.chain = message.start_lsn, message.chain
            self.expects_begin = True
            for disk in self.disks.values():
                disk.sync_lsn = None
        syncing = []
        answers: list[Message] = []
        for index, disk in self.disks.items():
            if disk.sync_lsn is not None and not disk.from_zero:
                disk.stated = 0
                syncing.append(SyncingDisk(index, disk.name, len(disk.content), disk.sync_lsn))
                answers.append(SyncKey(index, disk.sync_lsn, KEY))
        told = [Ack(self.durable_lsn, self.durable_lsn, again, len(self.points))] if again else []
        return [Opened(message.start_lsn, syncing, len(again)), *told, *answers]

    def _told_again(self, message: Open) -> list[Point]:
        ours = [point for point in self.points if point.ordinal == message.ordinal]
        if message.points_after is None:
            return ours[-RESENT_POINTS:]
        return [point for point in ours if point.lsn > message.points_after]

    def _frame(self, frame: Frame) -> list[Message]:
        header = frame.header
        if (header.start_lsn, header.chain_start) != (self.durable_lsn, self.chain):
            raise UsageError("the frame does not continue the log")
        answers: list[Message] = []
        made: list[Point] = []
        for lsn, record in self.opener.open(frame).records:
            if self.expects_begin and record.type != RecordType.SYNC_BEGIN:
                raise UsageError("a stream begins with a sync")
            self.expects_begin = False
            self._apply(lsn, record, answers, made)
        self.frames.append(frame)
        self.durable_lsn, self.chain = header.end_lsn, header.chain_end
        return [*answers, Ack(self.durable_lsn, self.durable_lsn, made, len(self.points))]

    def _apply(self, lsn: int, record: Record, answers: list[Message], made: list[Point]) -> None:
        span = range(record.offset, record.offset + record.length)
        match record.type:
            case RecordType.SYNC_BEGIN:
                self._begin(lsn, record, answers)
            case RecordType.SYNC_END:
                disk = self.disks[record.disk]
                for at in disk.pending:
                    disk.content[at] = 0
                disk.pending.clear()
                disk.sync_lsn = None
            case RecordType.WRITE:
                disk = self.disks[record.disk]
                disk.content[span.start : span.stop] = record.payload
                disk.pending.difference_update(span)
            case RecordType.ZERO:
                disk = self.disks[record.disk]
                if disk.sync_lsn is not None:
                    disk.pending.update(span)
                else:
                    disk.content[span.start : span.stop] = bytes(record.length)
            case RecordType.SAME:
                disk = self.disks[record.disk]
                assert disk.sync_lsn is not None, "same outside a sync"
                disk.pending.difference_update(span)
            case RecordType.CUT:
                self._cut(lsn, record, made)

    def _begin(self, lsn: int, record: Record, answers: list[Message]) -> None:
        body = decode_body(SyncBegin, record, lsn)
        known = self.disks.get(record.disk)
        content = bytearray(body.size) if known is None or body.from_zero else known.content
        self.disks[record.disk] = FakeDisk(body.name, content, lsn, body.from_zero)
        if not body.from_zero:
            answers.append(SyncKey(record.disk, lsn, KEY))

    def _cut(self, lsn: int, record: Record, made: list[Point]) -> None:
        body = decode_body(Cut, record, lsn)
        if not all(member.complete for member in body.members):
            return
        assert all(self.disks[member.disk].sync_lsn is None for member in body.members)
        taken = any(point.label == body.label for point in self.points)
        label = f"{body.label}~2" if taken and body.label is not None else body.label
        end_lsn = lsn + record.size
        point = Point(
            self.next_point, record.time_ns, body.kind, end_lsn, label, ordinal=self.ordinal
        )
        self.next_point += 1
        self.points.append(point)
        self.images[point.sequence] = {
            member.disk: bytes(self.disks[member.disk].content) for member in body.members
        }
        made.append(point)

    def _digests(self, wanted: DigestsWanted) -> list[Message]:
        disk = self.disks[wanted.disk]
        if disk.sync_lsn != wanted.sync_lsn:
            return []
        blocks = -(-len(disk.content) // DIGEST_BLOCK_BYTES)
        answers: list[Message] = []
        while disk.stated < min(wanted.end_block, blocks):
            at = disk.stated * DIGEST_BLOCK_BYTES
            block = bytes(disk.content[at : at + DIGEST_BLOCK_BYTES])
            common = (wanted.disk, wanted.sync_lsn, disk.stated, self.durable_lsn)
            if not any(block):
                answers.append(Digests(*common, zero_blocks=1))
            else:
                digest = blake2b(block, digest_size=16, key=KEY).digest()
                answers.append(Digests(*common, digests=digest))
            disk.stated += 1
        if disk.stated == blocks:
            answers.append(DigestsDone(wanted.disk, wanted.sync_lsn))
        return answers
