# SPDX-License-Identifier: Apache-2.0
"""What the audit notes of the histories: how far each is sealed, and what compactions have made.

A compacted segment is known by the digest of those that it replaced, to which the next one links;
its own digest is read from its seal, once for each segment that is new.

Concurrency: `look` in the thread that records; `stretches` with it. Segments of a history are
values that are replaced, never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from journal.stream_files import read_seal
from receiver.audit.chain import Head, Seen
from receiver.audit.heads import Stretch
from receiver.history.batches import Segment
from replicator.base.storage import Storage

Sealed = Callable[[], dict[str, list[Segment]]]
"""The sealed segments of each group that can be read, oldest first."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A group's history as it was when it was last looked at."""

    segments: list[Segment]
    stretches: list[Stretch]
    rewritten: dict[int, str]


class HistoryWatch:
    """See the head of this file."""

    def __init__(self, storage: Storage, sealed: Sealed) -> None:
        self._storage = storage
        self._sealed = sealed
        self._known: dict[str, _Known] = {}

    def look(self) -> Seen:
        """All there is. Cheap where nothing has changed."""
        known = self._refreshed()
        heads = {
            group: Head(each.stretches[-1].end, each.stretches[-1].digest)
            for group, each in known.items()
            if each.stretches
        }
        return Seen(heads, {group: each.rewritten for group, each in known.items()})

    def stretches(self) -> dict[str, list[Stretch]]:
        """As of the last look."""
        return {group: each.stretches for group, each in self._known.items()}

    def _refreshed(self) -> dict[str, _Known]:
        now: dict[str, _Known] = {}
        for group, segments in self._sealed().items():
            known = self._known.get(group)
            if known is None or known.segments != segments:
                known = self._read(segments, known)
            now[group] = known
        self._known = now
        return now

    def _read(self, segments: list[Segment], before: _Known | None) -> _Known:
        old: dict[Segment, str] = {}
        if before is not None:
            old = dict(zip(before.segments, (each.own for each in before.stretches), strict=True))
        stretches: list[Stretch] = []
        for each in segments:
            own = old.get(each)
            if own is None:
                own = self._own_digest(each)
            stretches.append(Stretch(each.first, each.end, each.digest.hex(), own))
        return _Known(segments, stretches, {each.first: each.own for each in stretches if each.own})

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
