# SPDX-License-Identifier: Apache-2.0
"""Syncs at the source: whose evidence counts, what is shipped and freed, what is durable first."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_CONTINUITY = ("tests/splitter/test_continuity.py",)
_SYNC_END = ("tests/splitter/test_sync_end.py",)
_PLAN = ("tests/drivers/test_libvirt_plan.py",)
_TRIES = ("tests/drivers/test_sync_tries.py",)
_SHIPPER = ("tests/agent/test_shipper.py",)

MUTANTS = (
    Mutant(
        "only what comes over the export of its own sync is a disk's",
        "agent/splitter/disk.py",
        "        return standing is not None and standing.sync_lsn == self.sync_lsn",
        "        return standing is not None",
        _CONTINUITY,
    ),
    Mutant(
        "what voids a sync drops the connections of its disk",
        "agent/splitter/group.py",
        "        self._to_drop += disk.links\n        disk.void_sync(sign)",
        "        disk.void_sync(sign)",
        _CONTINUITY,
    ),
    Mutant(
        "a sync-begin drops who was connected before",
        "agent/splitter/group.py",
        "            self._to_drop += disk.strangers()",
        "            disk.strangers()",
        _CONTINUITY,
    ),
    Mutant(
        "a second FLUSH voids a sync",
        "agent/splitter/continuity.py",
        '    **{("libvirt", DiskState.FLUSHED, signal): Effect.VOID for signal in _EVERY},',
        '    **{("libvirt", DiskState.FLUSHED, signal): Effect.VOID for signal in _EVERY},\n'
        '    ("libvirt", DiskState.FLUSHED, Signal.FLUSH): Effect.FLUSHED,',
        _CONTINUITY,
    ),
    Mutant(
        "READY counts for the connection that it is confirmed for",
        "agent/splitter/group.py",
        "        if disk.flushed_by != connection:",
        "        if connection < 0:",
        _CONTINUITY,
    ),
    Mutant(
        "the evidence of the connection before counts for nothing",
        "agent/splitter/disk.py",
        "        self.rule = SyncEnd(longest=MAX_BLOCK_BYTES, size=self.size)",
        "        self.rule = self.rule or SyncEnd(longest=MAX_BLOCK_BYTES, size=self.size)",
        _SYNC_END,
    ),
    Mutant(
        "an old copy is ended before a sync begins",
        "agent/drivers/libvirt/plan.py",
        "        if disk.mirror is not None and disk.mirror.export != declared[disk.name].export:",
        '        if disk.mirror is not None and declared[disk.name].state == "none":',
        _PLAN,
    ),
    Mutant(
        "and a sync is begun in a living stream only where no copy is left",
        "agent/drivers/libvirt/plan.py",
        '        elif declared[disk.name].state == "idle":\n            yield BeginSync(disk)',
        '        if declared[disk.name].state == "idle":\n            yield BeginSync(disk)',
        _PLAN,
    ),
    Mutant(
        "no copy is begun into an export that somebody is connected to",
        "agent/drivers/libvirt/plan.py",
        "        if status.connected:\n",
        "        if status.connected < 0:\n",
        _PLAN,
    ),
    Mutant(
        "READY of an earlier copy confirms nothing",
        "agent/drivers/libvirt/plan.py",
        "    if disk.mirror.export != status.export or not disk.mirror.ready:",
        "    if not disk.mirror.ready:",
        _PLAN,
    ),
    Mutant(
        "READY is confirmed after its FLUSH was told",
        "agent/drivers/libvirt/plan.py",
        "    if not status.flushed_by or evidence in told.ready:",
        "    if evidence in told.ready:",
        _PLAN,
    ),
    Mutant(
        "an answer of libvirt's that an event has overtaken is not kept",
        "agent/drivers/libvirt/facts.py",
        "        self._facts = read if forgotten == self._forgotten else None",
        "        self._facts = read",
        ("tests/drivers/test_libvirt_facts.py",),
    ),
    Mutant(
        "a sync that failed is tried again later each time",
        "agent/drivers/libvirt/sync_tries.py",
        "            self.backoff.failed(why, now)",
        "            pass",
        _TRIES,
    ),
    Mutant(
        "no status counts that is older than an answer",
        "agent/links/splitter_link.py",
        "        self.current = isinstance(message, SplitterStatus)",
        "        self.current = True",
        ("tests/agent/test_splitter_link.py",),
    ),
    Mutant(
        "no splitter gets an order that it is too old for",
        "agent/links/splitter_link.py",
        "        if self._protocol is not None and request.since > self._protocol:",
        "        if self._protocol is not None and request.since > 99:",
        ("tests/agent/test_splitter_link.py",),
    ),
    Mutant(
        "the spool keeps what was sent and is not durable",
        "agent/shipping/shipper.py",
        "            free_below(self._storage, self._directories, at.name, self._durable_lsn)",
        "            free_below(self._storage, self._directories, at.name, at.lsn)",
        _SHIPPER,
    ),
    Mutant(
        "what is in flight is forgotten when the next stream is opened",
        "agent/shipping/shipper.py",
        "        self._in_flight.clear()  # what is still in flight belongs to the stream before\n"
        "        self._in_flight_bytes = 0\n",
        "",
        _SHIPPER,
    ),
    Mutant(
        "a stream above the splitter's last word is not dead",
        "agent/shipping/shipper.py",
        "        return live is None or live.name.ordinal > at.name.ordinal",
        "        return live is None or live.name.ordinal != at.name.ordinal",
        _SHIPPER,
    ),
    Mutant(
        "a stream begins with a sync if its first record is a sync-begin",
        "agent/shipping/survey.py",
        "    return chunk.records[0][1].type == RecordType.SYNC_BEGIN",
        "    return bool(chunk.records)",
        ("tests/agent/test_spool_survey.py",),
    ),
    Mutant(
        "zeroes that are older than what was shipped are not believed",
        "agent/shipping/sync_filter.py",
        "            if lsn < self._base_lsn:\n",
        "            if lsn < 0:\n",
        ("tests/agent/test_sync_filter.py",),
    ),
    Mutant(
        "what is reserved is used when it is durable",
        "agent/splitter/reservation.py",
        "        self._storage.make_directory(self._path.parent)\n"
        "        write_durably(self._storage, self._path, msgspec.json.encode(state))\n"
        "        self._state = state",
        "        self._state = state\n"
        "        self._storage.make_directory(self._path.parent)\n"
        "        write_durably(self._storage, self._path, msgspec.json.encode(state))",
        ("tests/splitter/test_reservation.py",),
    ),
)
