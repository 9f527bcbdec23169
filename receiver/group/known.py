# SPDX-License-Identifier: Apache-2.0
"""What is known of a group. Any thread: values are read that are replaced as a whole.

Nothing here asks a disk, and nothing is kept: each answer is of the parts as they are now.
"""

from __future__ import annotations

from receiver.audit.chain import OpenEnd
from receiver.counted.ages import Ages
from receiver.damage.damage import Damage, damaged_points
from receiver.group.parts import GroupParts
from receiver.history.bodies import DamagedBlocks
from receiver.intake.inbox import StreamInbox
from receiver.points.values import Condition, WelcomeFacts


class Known:
    """See the head of this file."""

    def __init__(self, parts: GroupParts) -> None:
        self._parts = parts
        self._intake = parts.intake
        self._applier = parts.applier
        self._history = parts.history
        self._points = parts.points

    # -- of the source

    def welcome(self) -> WelcomeFacts:
        """For a source that says hello."""
        state = self._intake.front.state
        stream = self._intake.current()
        ordinal = max(state.ordinal, state.closed_ordinal)
        return WelcomeFacts(
            generation=self.generation,
            stream=None if stream is None else stream.name.stream,
            ordinal=ordinal,
            durable_lsn=0 if stream is None else stream.durable_lsn,
            chain=0 if stream is None else stream.durable_chain,
            applied_lsn=self._applied_in(stream),
            closed_ordinal=state.closed_ordinal if stream is not None else ordinal,
            next_point=state.next_point,
        )

    def _applied_in(self, stream: StreamInbox | None) -> int:
        """Where the replica is in that stream; its start while an older one is being applied."""
        applied = self._applier.applied
        if stream is None or stream.name.ordinal == applied.ordinal:
            return applied.lsn
        return stream.frames[0].start_lsn if stream.frames else stream.received_lsn

    @property
    def generation(self) -> int:
        return self._intake.front.state.generation

    @property
    def condition(self) -> Condition:
        state = self._intake.front.state
        if self._applier.is_rolling_back:
            return "rolling-back"
        if state.rolled_back:
            return "rolled-back"
        if not state.disks:
            return "idle"
        return "syncing" if state.is_syncing else "complete"

    def is_label_taken(self, label: str) -> bool:
        return label in self._intake.front.state.labels or label in self._points.labels

    def disk_sizes(self) -> dict[str, int]:
        """By the source's names."""
        state = self._intake.front.state
        return {disk.source_name: disk.size_bytes for disk in state.present}

    @property
    def earlier_sizes(self) -> dict[str, list[int]]:
        """Of instances that are kept because points show them, by the source's names. Any
        thread."""
        sizes: dict[str, list[int]] = {}
        for disk in self._applier.applied.earlier:
            sizes.setdefault(disk.source_name, []).append(disk.size_bytes)
        return sizes

    # -- how far it is

    def is_applied(self, ordinal: int, lsn: int) -> bool:
        applied = self._applier.applied
        return (applied.ordinal, applied.lsn) >= (ordinal, lsn)

    @property
    def unapplied_bytes(self) -> int:
        applied = self._applier.applied
        return self._parts.inbox.unapplied_bytes(applied.ordinal, applied.lsn)

    @property
    def inbox_bytes(self) -> int:
        return self._parts.inbox.used_bytes

    @property
    def kept_bytes(self) -> int:
        """What the budget counts."""
        inbox = self._parts.inbox
        return (
            self._history.segment_set.used_bytes
            + inbox.used_bytes
            + self._parts.fine.log.used_bytes
        )

    @property
    def open_end(self) -> OpenEnd | None:
        """How far it has come, for the audit; None where nothing is stated of that. Any thread."""
        newest = self._points.newest
        if not self._parts.voucher.has_spoken or self._parts.opening.is_mending:
            return None
        return OpenEnd(
            self._history.log.durable_end, 0 if newest is None else newest.sequence, self.generation
        )

    def newest_stamp_ns(self, below_ns: int) -> int | None:
        """Of the points, the latest that is not above, and was not taken back. Any thread."""
        stamps = (each.received_ns for each in self._points.all if not each.is_restamped)
        return max((stamp for stamp in stamps if 0 < stamp <= below_ns), default=None)

    def ages(self) -> Ages:
        """The clock that points are stamped with, as it is now."""
        return self._parts.age_clock.ages()

    # -- what is wrong

    @property
    def damage(self) -> Damage:
        """What is known to be damaged. Any thread."""
        return self._applier.newest_state.damage

    def damaged_points(self) -> dict[int, list[DamagedBlocks]]:
        """What each damaged point would need and cannot have. Any thread."""
        found = damaged_points(self.damage, self._history.batch_list.all)
        return {each: found[each] for each in found if each not in self._history.batch_list.dropped}

    # -- counted since this process started

    @property
    def unverified_bytes(self) -> int:
        """Old content that had no sum when a batch changed it."""
        return self._parts.old_content.unverified_bytes

    @property
    def compacted_bytes(self) -> int:
        """Read by compactions that ended."""
        return self._parts.reclaim.compacted_bytes
