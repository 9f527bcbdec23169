# SPDX-License-Identifier: Apache-2.0
"""A disk of a group as an NBD export: requests into the group's log, answers back.

What is offered is what QEMU needs and nothing that would make it skip a write: FLUSH (the mark
that a sync has ended), FUA, WRITE_ZEROES, TRIM; no block status, no fast zero, no multi-conn. The
smallest block is 512, so the mirror never has to read; a READ is refused with EPERM.

A batch is worked through in order: runs of writes become one append each; FLUSH, DISC and errors
take effect (continuity.py) between them, before any reply of the batch leaves.

Answered means appended, or the group's stream was closed before. FLUSH and FUA are answered with
that same meaning: they do not make the spool survive a power cut of this host (docs/guarantees.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from agent.splitter.continuity import Effect, Event, effect_of
from agent.splitter.group_log import GroupLog, LogDisk
from agent.splitter.sync_end import SyncEndRule
from replicator.base.clock import Clock
from replicator.nbd.connection import Connection
from replicator.nbd.constants import Command, WireError
from replicator.nbd.exports import ConnectionEnd, EndKind, ExportInfo
from replicator.nbd.limits import MAX_BLOCK_BYTES
from replicator.nbd.transmission import Request

_FLUSH = int(Command.FLUSH)
_CHANGES = frozenset(map(int, (Command.WRITE, Command.WRITE_ZEROES, Command.TRIM)))


class DiskExport:
    """One disk of a group. Knows its connections, so that a cut can look for hang-ups."""

    def __init__(self, group: GroupLog, disk: LogDisk, clock: Clock) -> None:
        self._group = group
        self._disk = disk
        self._clock = clock
        self._rules: dict[Connection, SyncEndRule] = {}

    @property
    def info(self) -> ExportInfo:
        return ExportInfo(
            size_bytes=self._disk.size,
            can_flush=True,
            can_fua=True,
            can_trim=True,
            can_write_zeroes=True,
            description=f"replicator group {self._group.name}, disk {self._disk.name}",
        )

    # -- what the NBD server calls ----------------------------------------------------------------

    def opened(self, connection: Connection) -> None:
        self._rules[connection] = SyncEndRule(self._disk.size, MAX_BLOCK_BYTES)
        self._disk.connected = len(self._rules)

    def submit(self, connection: Connection, batch: Sequence[Request]) -> None:
        started_ns = self._clock.monotonic_ns()
        changes: list[Request] = []
        for request in batch:
            if request.command in _CHANGES and not request.error:
                changes.append(request)
                continue
            self._append(connection, changes, started_ns)
            changes = []
            self._event(connection, _event_of(request), started_ns)
        self._append(connection, changes, started_ns)
        answer = partial(self._answer, connection, batch, started_ns)
        if self._group.idle:
            answer()
        else:
            connection.hold()
            self._group.after_appends(partial(self._answer_held, connection, answer))

    def closed(self, connection: Connection, end: ConnectionEnd) -> None:
        self._rules.pop(connection, None)
        self._disk.connected = len(self._rules)
        if end.kind is EndKind.DISC and end.clean:
            return  # its effect was taken when DISC came
        event = Event.EOF_CLEAN if end.clean else Event.EOF_DIRTY
        self._take_effect(connection, event, self._clock.monotonic_ns())

    # -- what the service calls -------------------------------------------------------------------

    def hung_up(self) -> bool:
        """Whether the far end of a connection is gone, with what it last said still unread."""
        return any(connection.hung_up() for connection in self._rules)

    def confirm_ready(self) -> bool:
        """READY was read back. True if this connection has flushed, as it must have before."""
        flushed = [rule for rule in self._rules.values() if rule.flushed]
        for rule in flushed:
            rule.ready = True
        self.check_sync_end()
        return bool(flushed) or self._disk.state == "complete"

    def check_sync_end(self) -> None:
        """Ends the sync if its rule holds by now; time alone can make it."""
        if self._disk.state not in ("syncing", "flushed") or self._group.driver != "libvirt":
            return
        now_ns = self._clock.monotonic_ns()
        if any(rule.ended(now_ns) for rule in self._rules.values()):
            self._group.sync_end(self._disk)

    def drop_connections(self, reason: str) -> None:
        for connection in list(self._rules):
            connection.close(reason)

    # -- steps ------------------------------------------------------------------------------------

    def _append(self, connection: Connection, changes: list[Request], now_ns: int) -> None:
        if not changes:
            return
        if self._disk.state != "complete":
            rule = self._rules[connection]
            for request in changes:
                rule.request(request.command, request.offset, request.length, now_ns)
        self._group.append_writes(self._disk, changes)
        if self._disk.state == "flushed":
            self.check_sync_end()

    def _answer(self, connection: Connection, batch: Sequence[Request], started_ns: int) -> None:
        for request in batch:
            if request.command == Command.READ and not request.error:
                connection.reply(request, WireError.EPERM)
        connection.reply_all(batch)
        self._group.latency.add(len(batch), self._clock.monotonic_ns() - started_ns)

    def _answer_held(self, connection: Connection, answer: partial[None]) -> None:
        answer()
        connection.release()

    def _event(self, connection: Connection, event: Event | None, now_ns: int) -> None:
        if event is not None:
            self._take_effect(connection, event, now_ns)

    def _take_effect(self, connection: Connection, event: Event, now_ns: int) -> None:
        group, disk = self._group, self._disk
        if not group.live or disk.state == "idle":
            return
        effect = effect_of(group.driver, event, complete=disk.state == "complete")
        what = f"{event.value} on disk {disk.name}"
        if effect is Effect.SYNC_FLUSHED and connection in self._rules:
            self._rules[connection].flush(now_ns)
            disk.state = "flushed"
            self.check_sync_end()
        elif effect is Effect.SYNC_ENDS:
            group.sync_end(disk)
        elif effect is Effect.SYNC_RESTARTS:
            disk.state = "syncing"
        elif effect is Effect.SUSPEND:
            group.suspend(what)
        elif effect is Effect.LOSE:
            group.lose(what)


def _event_of(request: Request) -> Event | None:
    if request.error or request.command == Command.READ:
        return Event.ERROR_REPLY
    if request.command == _FLUSH:
        return Event.FLUSH
    return Event.DISC if request.command == Command.DISC else None
