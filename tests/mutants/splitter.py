# SPDX-License-Identifier: Apache-2.0
"""The splitter: when a sync has ended, when continuity is lost, what a cut may say."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_SYNC_END = ("tests/splitter/test_sync_end.py",)
_GROUP = (
    "tests/splitter/test_group.py",
    "tests/splitter/test_continuity.py",
    "tests/splitter/test_losses.py",
)

MUTANTS = (
    Mutant(
        "a request of the maximum length awaits its continuation",
        "agent/splitter/sync_end.py",
        "        return self._touched_ns + CONTINUATION_NS if self._awaited else 0",
        "        return 0",
        _SYNC_END,
    ),
    Mutant(
        "a continuation of the maximum length awaits one in turn",
        "agent/splitter/sync_end.py",
        "        if continues or not self.flushed:",
        "        if not self.flushed:",
        _SYNC_END,
    ),
    Mutant(
        "a FLUSH in a complete group suspends it",
        "agent/splitter/continuity.py",
        '    ("libvirt", DiskState.COMPLETE, Signal.FLUSH): Effect.SUSPEND,',
        '    ("libvirt", DiskState.COMPLETE, Signal.FLUSH): Effect.NOTHING,',
        _GROUP,
    ),
    Mutant(
        "an end without goodbye loses continuity",
        "agent/splitter/continuity.py",
        '    ("libvirt", DiskState.COMPLETE, Signal.EOF): Effect.LOSE,',
        '    ("libvirt", DiskState.COMPLETE, Signal.EOF): Effect.SUSPEND,',
        _GROUP,
    ),
    Mutant(
        "mirrors that end one by one make no final cut",
        "agent/splitter/ending.py",
        "        if self.last_ns - self.first_ns > SPREAD_NS:",
        "        if self.last_ns - self.first_ns > 1000 * SPREAD_NS:",
        _GROUP,
    ),
    Mutant(
        "sockets are looked at before each cut",
        "agent/splitter/group.py",
        "        return self.roster.hung_up()",
        '        return ""',
        _GROUP,
    ),
    Mutant(
        "a disk added later is no member before its sync-end",
        "agent/splitter/roster.py",
        "        disk.member = self._streaming and not self._was_ready",
        "        disk.member = self._streaming",
        _GROUP,
    ),
    Mutant(
        "an ordinal is never given twice",
        "agent/splitter/reservation.py",
        "            ordinal = max(self.known_ordinal(), above_ordinal) + 1",
        "            ordinal = max(self._state.ordinal, above_ordinal) + 1",
        ("tests/splitter/test_reservation.py",),
    ),
    Mutant(
        "a new stream begins beyond every LSN that was reserved",
        "agent/splitter/reservation.py",
        "            first_lsn = max(self._state.lsn_reserved, self._spool_end())",
        "            first_lsn = self._spool_end()",
        ("tests/splitter/test_reservation.py",),
    ),
)
