# SPDX-License-Identifier: Apache-2.0
"""What the audit notes of the histories: how far each is sealed, and what compactions have made.

A compacted segment is known by the digest of those that it replaced, to which the next one links;
its own digest is read from its seal, once for each segment that is new.

Concurrency: `read` from any thread, one at a time for each group; all else in the thread that
records, and never waits for a disk. Segments of a history are values that are replaced, never
changed. Failure: a history that cannot be read is its group's trouble (receiver.orders.lookout);
what was known of it stays."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from journal.stream_files import read_seal
from receiver.audit.chain import Head, Seen
from receiver.audit.heads import Stretch
from receiver.history.batches import Segment
from replicator.base.storage import Storage


@dataclass(frozen=True, slots=True)
class _Known:
    """A group's history as it was when it was last looked at."""

    segments: list[Segment]
    stretches: list[Stretch]
    rewritten: dict[int, str]


class HistoryWatch:
    """See the head of this file."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._known: dict[str, _Known] = {}

    def look(self) -> Seen:
        """All that has been read."""
        known = self._known.copy()
        heads = {
            group: Head(each.stretches[-1].end, each.stretches[-1].digest)
            for group, each in known.items()
            if each.stretches
        }
        return Seen(heads, {group: each.rewritten for group, each in known.items()})

    def stretches(self) -> dict[str, list[Stretch]]:
        """As it was read last."""
        return {group: each.stretches for group, each in self._known.copy().items()}

    def forget(self, group: str) -> None:
        """Its history is gone, by order."""
        self._known.pop(group, None)

    def is_current(self, group: str, segments: list[Segment]) -> bool:
        """Whether there is nothing to read."""
        known = self._known.get(group)
        return known is not None and known.segments == segments

    def read(self, group: str, segments: list[Segment]) -> None:
        """`segments`: the sealed ones of the group, oldest first. Raises OSError, DamageError."""
        before = self._known.get(group)
        old: dict[Segment, str] = {}
        if before is not None:
            old = dict(zip(before.segments, (each.own for each in before.stretches), strict=True))
        stretches: list[Stretch] = []
        for each in segments:
            own = old.get(each)
            if own is None:
                own = self._own_digest(each)
            stretches.append(Stretch(each.first, each.end, each.digest.hex(), own))
        rewritten = {each.first: each.own for each in stretches if each.own}
        self._known[group] = _Known(segments, stretches, rewritten)

    def _own_digest(self, segment: Segment) -> str:
        """Empty for one that was not compacted, or that has just been replaced."""
        if segment.data_end == segment.end:
            return ""
        try:
            with closing(self._storage.open(segment.path)) as file:
                seal = read_seal(file, segment.first)
        except FileNotFoundError:
            return ""
        return "" if seal is None else seal.digest.hex()
