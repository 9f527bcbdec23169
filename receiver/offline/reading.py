# SPDX-License-Identifier: Apache-2.0
"""A bare history as an index: which points it holds, in which segments, and from where on it can
be believed. Read-only; headers alone are read, and memory does not grow with the images.

The newest part counts: a point needs what lies *behind* it. So damage in the middle leaves the
points behind it readable, and `damaged_up_to` says which those are.

A batch that is in the history may not be in the replica yet (`unapplied`). Its before-images repair
the replica for all older points; its own point cannot be made from replica and history.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import parse_header
from journal.spool import SegmentFile
from journal.stream_files import read_seal
from receiver.catalog import SegmentFact
from receiver.check.places import HistoryPlace
from receiver.check.read_only import ReadOnlyStorage
from receiver.history import bodies
from receiver.history.batches import Batch
from receiver.history.opening import Tail, open_history
from receiver.history.units import read_units
from receiver.points import pointspec
from receiver.points.points import apart
from receiver.points.values import Point
from replicator.base.errors import DamageError, NoPointError
from replicator.base.mishaps import reason
from replicator.base.storage import Storage


@dataclass(frozen=True, slots=True)
class BareSegment:
    """A segment and the numbers of its batches [first_batch, last_batch]; 0 where it has none.
    `end` is where its records end."""

    file: SegmentFile
    end: int
    is_sealed: bool
    first_batch: int
    last_batch: int


@dataclass(slots=True)
class BareIndex:
    """See the head of this file. `points`, with the number of the batch that made each, oldest
    first. `group` is the newest state."""

    segments: list[BareSegment] = field(default_factory=list)
    points: dict[int, tuple[Point, int]] = field(default_factory=dict)
    facts: list[SegmentFact] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    group: bodies.GroupBody | None = None
    before: bodies.GroupBody | None = None
    unapplied: Batch | None = None
    tail: Tail | None = None
    damage: DamageError | None = None
    """The newest damage that was found; points in front of it are not among `points`."""

    def kept_points(self) -> list[Point]:
        return apart(
            [point for number, (point, _) in self.points.items() if number not in self.dropped]
        )


def read_index(storage: Storage, place: HistoryPlace) -> BareIndex:
    """Raises DamageError where not even the newest segment can be read."""
    reader = _Reader(ReadOnlyStorage(storage), place)
    reader.run()
    return reader.index


def batches_of(storage: Storage, place: HistoryPlace, segment: BareSegment) -> list[Batch]:
    """Read again, with their tables. Raises DamageError."""
    if not segment.is_sealed:
        return open_history(ReadOnlyStorage(storage), place.folder, [segment.file]).batches
    with closing(storage.open(segment.file.path)) as file:
        contents = read_units(file, segment.file, segment.end)
    return [batch for _, batch in contents.begins]


def _damage(file: SegmentFile, error: DamageError | OSError) -> DamageError:
    """A segment that the disk cannot give is as good as one that is bad."""
    if isinstance(error, DamageError):
        return error
    return DamageError(f"{file.path}: cannot be read: {reason(error)}")


class _Reader:
    def __init__(self, storage: ReadOnlyStorage, place: HistoryPlace) -> None:
        self._storage = storage
        self._place = place
        self._link: tuple[int, int, bytes] | None = None  # end, chain, digest of the one before
        self.index = BareIndex()

    def run(self) -> None:
        files = self._place.segments(self._storage)
        for at, file in enumerate(files):
            is_newest = at == len(files) - 1
            if self._link is not None and file.first_lsn < self._link[0]:
                continue  # a compaction that was interrupted left it: it is stood for
            try:
                self._take_newest(file) if is_newest else self._take_sealed(file)
            except (DamageError, OSError) as error:
                damage = _damage(file, error)
                if is_newest:
                    raise damage from error
                self._forget(damage)

    def _forget(self, error: DamageError) -> None:
        """Nothing in front of this can be made any more."""
        self.index.points.clear()
        self.index.segments.clear()
        self.index.facts.clear()
        self.index.damage = error
        self._link = None

    def _take_sealed(self, segment: SegmentFile) -> None:
        with closing(self._storage.open(segment.path)) as file:
            header = parse_header(file.pread(SEGMENT_HEADER_BYTES, 0), str(segment.path))
            seal = read_seal(file, segment.first_lsn)
            if seal is None:
                raise DamageError(f"{segment.path}: not sealed, although newer segments follow")
            contents = read_units(file, segment, seal.end_lsn)
        self._check_link(segment, header.chain, seal.previous_digest)
        state = contents.state
        if state is None:
            raise DamageError(f"{segment.path}: does not begin with the group's state")
        self._add(segment, state, contents.begins, contents.end, is_sealed=True)
        self.index.dropped |= contents.dropped
        stands = state.stands_for
        if stands is None:
            self._link = contents.end, seal.chain, seal.digest
        else:
            self._link = stands.end, stands.chain, stands.digest
        self._add_fact(segment, self._link[0], self._link[2])

    def _take_newest(self, segment: SegmentFile) -> None:
        opened = open_history(self._storage, self._place.folder, [segment])
        self.index.tail = opened.tail
        contents = opened.contents
        if contents is None or contents.state is None:
            return
        with closing(self._storage.open(segment.path)) as file:
            header = parse_header(file.pread(SEGMENT_HEADER_BYTES, 0), str(segment.path))
            seal = read_seal(file, segment.first_lsn) if opened.segments[-1].sealed else None
        try:
            previous = None if seal is None else seal.previous_digest
            self._check_link(segment, header.chain, previous)
        except DamageError as error:
            self._forget(error)
        is_sealed = seal is not None
        self._add(segment, contents.state, contents.begins, contents.end, is_sealed=is_sealed)
        self.index.dropped |= contents.dropped
        if seal is not None:
            taken = opened.segments[-1]
            self._add_fact(segment, taken.end, taken.digest)
        if contents.begins and contents.begins[-1][1].number != contents.applied:
            self.index.unapplied = contents.begins[-1][1]

    def _check_link(self, segment: SegmentFile, chain: int, previous: bytes | None) -> None:
        if self._link is None:
            return
        end, expected, digest = self._link
        if (end, expected) != (segment.first_lsn, chain):
            raise DamageError(f"{segment.path}: does not continue the segment before it")
        if previous is not None and previous != digest:
            raise DamageError(f"{segment.path}: does not follow the digest of the one before it")

    def _add(
        self,
        segment: SegmentFile,
        state: bodies.StateBody,
        begins: list[tuple[bodies.BatchBegin, Batch]],
        end: int,
        *,
        is_sealed: bool,
    ) -> None:
        index = self.index
        index.texts.update(state.texts)
        index.before = index.group = state.group
        for begin, batch in begins:
            index.texts.update(begin.texts)
            index.before, index.group = index.group, begin.group
            self._hold(batch)
            if batch.point is not None:
                index.points[batch.point.sequence] = (batch.point, batch.number)
        numbers = [batch.number for _, batch in begins]
        first, last = (numbers[0], numbers[-1]) if numbers else (0, 0)
        index.segments.append(BareSegment(segment, end, is_sealed, first, last))

    def _hold(self, batch: Batch) -> None:
        held = batch.held
        if held is not None and held.sequence in self.index.points:
            point, number = self.index.points[held.sequence]
            until_ns = max(point.until_ns, held.until_ns)
            self.index.points[held.sequence] = (replace(point, until_ns=until_ns), number)

    def _add_fact(self, segment: SegmentFile, end: int, digest: bytes) -> None:
        size = self._storage.allocated_bytes(segment.path)
        self.index.facts.append(SegmentFact(segment.first_lsn, end, size, digest))


def segments_behind(index: BareIndex, number: int) -> Iterator[BareSegment]:
    """Those that hold batches behind the one with that number, oldest first."""
    for segment in index.segments:
        if segment.last_batch > number:
            yield segment


def choose(index: BareIndex, text: str, now_ns: int, zone: str | None) -> pointspec.Chosen:
    """The point that a person means. Raises UsageError, NotFoundError, NoPointError."""
    chosen = pointspec.find(text, now_ns, zone, index.kept_points())
    if chosen.writes:
        raise NoPointError(
            f"{chosen.asked}: the writes between points are not in the history",
            hint="a running receiver can reproduce them, while its fine_history holds",
        )
    return chosen


def remarks(storage: Storage, place: HistoryPlace, index: BareIndex) -> list[str]:
    """What a person who extracts from it should know."""
    found: list[str] = []
    if index.damage is not None:
        found.append(f"{index.damage.message}: points in front of it cannot be extracted")
    if index.tail is not None:
        found.append(f"{index.tail.where}: a batch that was not complete, and has touched nothing")
    if index.unapplied is not None:
        found.append(
            f"batch {index.unapplied.number} may not be in the replica yet: its before-images are"
            " used, its own point cannot be extracted"
        )
    inbox = place.group_dir / "inbox"
    if any(
        name.endswith(".seg")
        for each in storage.names(inbox)
        for name in storage.names(inbox / each)
    ):
        found.append(f"{inbox} may hold points that are newer than those of the history")
    return found
