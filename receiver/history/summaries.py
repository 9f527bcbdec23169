# SPDX-License-Identifier: Apache-2.0
"""The summaries of a history's sealed segments: files beside them, made, believed and taken away.

    GROUP/summaries/DIGEST.summary     receiver.history.summary, one for each sealed segment

Named by the digest of the segment's own seal, so whatever becomes of a segment (a compaction, an
older copy put back, another group's in its place), a file never tells of the wrong one: it is not
looked at any more, and removed. There is no order between segment and summary for a crash to break.

Opening takes a summary where there is one (`read`), and puts down what it had to gather from the
segment (`put`). Beside replication, a bounded part a step (`step`), each segment is gone through by
the very walk that an opening without summaries would make:

* one whose summary was believed, once behind the opening. A rotten header raises DamageError, again
  with each step: the group stops, as it would not have been opened. So does a summary that is not
  what the segment says (no accident: somebody has made it), and it is removed, so that the next
  opening reads the segment itself.
* one that was sealed or compacted since: it gets its summary.

Nothing is synced: what a power cut tears is no summary, and is made anew. Where a file cannot be
written (a full disk) it is left, until segments change; nothing else stops for that.

Concurrency: the group's apply thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from journal.spool import SegmentFile
from receiver.history.batches import Segment
from receiver.history.summary import SegmentIdentity, Summary, pack, parse
from receiver.history.units import Contents, summary_of, walk_units
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage, write_all

SUFFIX = ".summary"
UNITS_PER_STEP = 256
"""Some tens of milliseconds."""


class KnownSummaries(Protocol):
    """What opening asks."""

    def read(self, identity: SegmentIdentity) -> Summary | None:
        """None where there is none that can be believed."""
        ...

    def put(self, identity: SegmentIdentity, summary: Summary) -> None:
        """For the next opening."""
        ...


class NoSummaries:
    """For whoever reads a history and leaves nothing there."""

    def read(self, _identity: SegmentIdentity) -> Summary | None:
        return None

    def put(self, _identity: SegmentIdentity, _summary: Summary) -> None:
        """Not kept."""


def identity_of(segment: Segment) -> SegmentIdentity:
    """Of a sealed one."""
    return SegmentIdentity(segment.first, segment.data_end, segment.seal_digest)


class Summaries:
    """See the head of this file. `segments` gives the sealed ones there are now."""

    def __init__(
        self, storage: Storage, folder: Path, segments: Callable[[], Sequence[Segment]]
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._segments = segments
        self._looked_at: Sequence[Segment] | None = None
        self._believed: dict[bytes, Summary] = {}
        self._ahead: list[Segment] = []
        self._work: _Work | None = None

    # -- opening

    def read(self, identity: SegmentIdentity) -> Summary | None:
        found = self._parsed(identity)
        if found is not None:
            self._believed[identity.digest] = found
        return found

    def _parsed(self, identity: SegmentIdentity) -> Summary | None:
        try:
            file = self._storage.open(self._path(identity.digest))
        except OSError:
            return None
        try:
            return parse(file.pread(file.size(), 0), identity)
        except OSError:
            return None  # as good as none: the segment says it
        finally:
            file.close()

    def put(self, identity: SegmentIdentity, summary: Summary) -> None:
        path, data = self._path(identity.digest), pack(identity, summary)
        if parse(data, identity) != summary:
            return  # it cannot be told whole: then the segment is read each time
        try:
            self._storage.make_directory(self._folder)
            if self._storage.exists(path):
                self._storage.unlink(path)
            file = self._storage.create(path)
        except OSError:
            return
        try:
            write_all(file, [data], 0)
        except OSError:
            with suppress(OSError):
                self._storage.unlink(path)
        finally:
            file.close()

    # -- beside replication

    def step(self) -> bool:
        """Goes through a part of what is ahead. False if nothing is. Raises DamageError, OSError:
        a segment that was believed cannot be."""
        self._look()
        if self._work is None:
            if not self._ahead:
                return False
            self._work = self._begin(self._ahead[-1])
        if self._work is None or not self._advance(self._work):
            self._give_up()
            self._ahead.pop()
        return True

    def close(self) -> None:
        self._give_up()
        self._looked_at = None
        self._believed.clear()

    def _look(self) -> None:
        """Where segments have changed: what is to be gone through, and which files are of none."""
        segments = self._segments()
        if segments is self._looked_at:
            return
        self._looked_at = segments
        self._give_up()
        wanted = {each.seal_digest: each for each in segments}
        self._believed = {each: self._believed[each] for each in self._believed.keys() & wanted}
        there: set[str] = set()
        with suppress(OSError):
            there.update(self._storage.names(self._folder))
            for name in there - {self._path(each).name for each in wanted}:
                self._storage.unlink(self._folder / name)
        self._ahead = [
            segment
            for digest, segment in wanted.items()
            if digest in self._believed or self._path(digest).name not in there
        ]

    def _begin(self, segment: Segment) -> _Work | None:
        wanted = self._believed.get(segment.seal_digest)
        try:
            file = self._storage.open(segment.path)
        except OSError:
            if wanted is not None:
                raise
            return None
        place, contents = SegmentFile(segment.first, segment.path), Contents(end=segment.data_end)
        units = walk_units(file, place, segment.data_end, contents)
        return _Work(segment, place, file, contents, units, wanted)

    def _advance(self, work: _Work) -> bool:
        """Whether there is more of it."""
        try:
            if work.step():
                return True
            found = summary_of(work.contents, work.place)
        except (DamageError, OSError):
            if work.wanted is None:
                return False  # found, and said, by whoever needs it
            self._give_up()
            raise
        if work.wanted is None:
            self.put(identity_of(work.segment), found)
        elif found == work.wanted:
            del self._believed[work.segment.seal_digest]
        else:
            self._give_up()
            self._distrust(work.segment)
        return False

    def _distrust(self, segment: Segment) -> None:
        path = self._path(segment.seal_digest)
        with suppress(FileNotFoundError):
            self._storage.unlink(path)
        raise DamageError(
            f"{segment.path}: says otherwise than its summary, {path.name}, which was believed",
            hint="somebody has made that file; it is removed: restart the receiver, which reads the"
            " segment itself then",
        )

    def _give_up(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.file.close()

    def _path(self, digest: bytes) -> Path:
        return self._folder / f"{digest.hex()}{SUFFIX}"


@dataclass(slots=True)
class _Work:
    """A segment that is being gone through. `wanted`: its summary that was believed; None: it has
    none."""

    segment: Segment
    place: SegmentFile
    file: File
    contents: Contents
    units: Iterator[None]
    wanted: Summary | None

    def step(self) -> bool:
        """False when all is read. Raises DamageError, OSError."""
        return sum(1 for _ in islice(self.units, UNITS_PER_STEP)) == UNITS_PER_STEP
