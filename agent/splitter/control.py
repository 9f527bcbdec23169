# SPDX-License-Identifier: Apache-2.0
"""The splitter's control socket: what the agent asks for, and the status pushed to it.

Nothing that happens here may be felt by a guest. So a subscriber that does not read is not waited
for: while its unsent bytes are above UNSENT_LIMIT_BYTES it gets no statuses (each one is the whole
truth, so it misses nothing), and nothing of it is queued.

Changes closer together than STATUS_INTERVAL_MIN_NS share one push; a status goes out at least every
HEARTBEAT_NS, so that silence means a dead splitter and never an idle one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import cast
from uuid import UUID

from agent.splitter import external
from agent.splitter.export import DiskExport
from agent.splitter.group_log import GroupLog
from replicator import __version__
from replicator.base.errors import NotFoundError, ReplicatorError, UsageError
from replicator.base.names import check_name
from replicator.control.splitter import (
    HEARTBEAT_NS,
    STATUS_INTERVAL_MIN_NS,
    Answer,
    AnyRequest,
    AppendDomainXml,
    CloseStream,
    DeclareDisk,
    DiskDeclared,
    Done,
    DropConnections,
    Hello,
    HelloAnswer,
    Mark,
    Marked,
    OpenStream,
    ProtocolError,
    Ready,
    Refused,
    Resync,
    SplitterSide,
    SplitterStatus,
    StreamOpened,
    Subscribe,
    SyncBegin,
    encode_error,
    encode_ok,
    encode_status,
)

log = logging.getLogger("replicator.splitter.control")

UNSENT_LIMIT_BYTES = 256 << 10
CONNECTIONS_MAX = 16

Reply = Callable[[Answer | ReplicatorError], None]


class Orders:
    """Carries out requests on the groups. `serve` makes an export for a disk that was declared;
    `instance` and `pid` say which process this is."""

    def __init__(
        self,
        groups: Mapping[str, GroupLog],
        exports: Mapping[tuple[str, str], DiskExport],
        serve: Callable[[GroupLog, str], None],
        *,
        instance: str,
        pid: int,
    ) -> None:
        self._groups = groups
        self._exports = exports
        self._serve = serve
        self.instance = instance
        self._pid = pid

    def status(self) -> SplitterStatus:
        groups = [group.status() for group in self._groups.values()]
        return SplitterStatus(instance=self.instance, groups=groups)

    def carry_out(self, request: AnyRequest, reply: Reply) -> None:
        """Answers by `reply`, at once or when what was asked for is in the log."""
        try:
            answer = self._do(request)
        except ReplicatorError as error:
            reply(error)
            return
        if isinstance(request, Mark):
            group = self._group(request.group)
            group.after_appends(lambda: reply(_after_mark(group, answer)))
        else:
            reply(answer)

    def _do(self, request: AnyRequest) -> Answer:
        match request:
            case Hello():
                return HelloAnswer(pid=self._pid, instance=self.instance, version=__version__)
            case Mark(group=name, label=label, kind=kind):
                lsn, time_ns = self._group(name).mark(label, kind)
                return Marked(lsn=lsn, time_ns=time_ns)
            case DeclareDisk():
                return self._declare(request)
            case OpenStream(group=name, above_ordinal=above):
                return self._open(self._group(name), above)
            case _:
                self._change(request)
                return Done()

    def _change(self, request: AnyRequest) -> None:
        match request:
            case SyncBegin(group=name, disk=disk, reason=reason):
                group = self._group(name)
                group.sync_begin(group.disk(disk), reason)
            case Ready(group=name, disk=disk):
                self._confirm_ready(name, disk)
            case AppendDomainXml(group=name, domain=domain, xml=xml):
                self._group(name).append_domain_xml(domain, xml)
            case Resync(group=name, above_ordinal=above):
                group = self._group(name)
                _require_external(group)
                external.resync(group, above_ordinal=above)
            case CloseStream(group=name, reason=reason, final_cut=final_cut):
                self._group(name).close(reason, final_cut=final_cut)
            case DropConnections(group=name):
                self._group(name)
                for (owner, _), export in self._exports.items():
                    if owner == name:
                        export.drop_connections("the agent asked for it")
            case Subscribe():
                pass  # the connection notes it

    def _group(self, name: str) -> GroupLog:
        if name not in self._groups:
            raise NotFoundError(f"the splitter has no group {name!r}")
        return self._groups[name]

    def _declare(self, request: DeclareDisk) -> DiskDeclared:
        group = self._group(request.group)
        if group.driver == "external":
            raise UsageError(f"the disks of {group.name!r} are those of the config file")
        check_name("disk", request.disk)
        if request.size <= 0 or request.size % 512:
            raise UsageError(f"disk size {request.size} is not a multiple of 512")
        try:
            instance = UUID(request.instance)
        except ValueError as error:
            raise UsageError(f"{request.instance!r} is no UUID") from error
        disk = group.declare(request.disk, request.size, instance)
        self._serve(group, disk.name)
        return DiskDeclared(index=disk.index)

    def _open(self, group: GroupLog, above_ordinal: int) -> StreamOpened:
        group.open_stream(above_ordinal=above_ordinal)
        status = group.status()
        assert status.stream is not None
        return StreamOpened(
            stream=status.stream, ordinal=status.ordinal, first_lsn=status.first_lsn
        )

    def _confirm_ready(self, group: str, disk: str) -> None:
        export = self._exports.get((group, disk))
        if export is None:
            raise NotFoundError(f"the splitter serves no disk {group}/{disk}")
        if not export.confirm_ready():
            raise UsageError(
                f"disk {group}/{disk} has not flushed on its connection of now",
                hint="READY of an earlier job? Read the state again",
            )


def _require_external(group: GroupLog) -> None:
    if group.driver != "external":
        raise UsageError(f"group {group.name!r} is resynced by its driver")


def _after_mark(group: GroupLog, answer: Answer) -> Answer | ReplicatorError:
    if group.live:
        return answer
    return ReplicatorError(f"group {group.name!r} lost continuity: {group.reason}")


class ControlConnection(asyncio.Protocol):
    """One connection of an agent."""

    def __init__(self, orders: Orders, publisher: Publisher) -> None:
        self._orders = orders
        self._publisher = publisher
        self._side = SplitterSide()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._publisher.admit(self):
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            requests = self._side.receive_data(data)
        except ProtocolError as error:
            log.warning("control connection ended: %s", error)
            self.abort()
            return
        for request in requests:
            if isinstance(request, Refused):
                self.send(request.line)
                continue
            self._orders.carry_out(request, self._replier(request))
            if isinstance(request, Subscribe):
                self._publisher.subscribe(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._publisher.forget(self)

    def send(self, line: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(line)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    @property
    def congested(self) -> bool:
        transport = self._transport
        return transport is None or transport.get_write_buffer_size() > UNSENT_LIMIT_BYTES

    def _replier(self, request: AnyRequest) -> Reply:
        def reply(answer: Answer | ReplicatorError) -> None:
            if isinstance(answer, ReplicatorError):
                self.send(encode_error(request.id, answer))
            else:
                self.send(encode_ok(request, answer))
            if self._transport is not None and self.congested:
                log.warning("control connection ended: it does not read its answers")
                self.abort()

        return reply


class Publisher:
    """Pushes the status to those who subscribed."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, status: Callable[[], SplitterStatus]
    ) -> None:
        self._loop = loop
        self._status = status
        self._connections: set[ControlConnection] = set()
        self._subscribers: set[ControlConnection] = set()
        self._push_timer: asyncio.TimerHandle | None = None
        self._heartbeat: asyncio.TimerHandle | None = None

    def admit(self, connection: ControlConnection) -> bool:
        if len(self._connections) >= CONNECTIONS_MAX:
            return False
        self._connections.add(connection)
        return True

    def subscribe(self, connection: ControlConnection) -> None:
        self._subscribers.add(connection)
        self.changed()

    def forget(self, connection: ControlConnection) -> None:
        self._connections.discard(connection)
        self._subscribers.discard(connection)

    def changed(self) -> None:
        """Something in the status is new; cheap, and called for each batch of writes."""
        if self._subscribers and self._push_timer is None:
            delay = STATUS_INTERVAL_MIN_NS / 1e9
            self._push_timer = self._loop.call_later(delay, self._push)

    def close(self) -> None:
        for timer in (self._push_timer, self._heartbeat):
            if timer is not None:
                timer.cancel()
        for connection in list(self._connections):
            connection.abort()

    def _push(self) -> None:
        if self._push_timer is not None:
            self._push_timer.cancel()
        self._push_timer = None
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._heartbeat = self._loop.call_later(HEARTBEAT_NS / 1e9, self._push)
        if not self._subscribers:
            return
        line = encode_status(self._status())
        for connection in self._subscribers:
            if not connection.congested:
                connection.send(line)
