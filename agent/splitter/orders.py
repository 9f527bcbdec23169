# SPDX-License-Identifier: Apache-2.0
"""The agent's orders, carried out on the groups: one function per request.

An order that needs a new stream reserves it in a thread, since that syncs a file; meanwhile guests
are served and other orders wait. Everything else is done within the step.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol, assert_never

from agent.splitter.group import GroupLog
from agent.splitter.lane import aside
from agent.splitter.writer import MadeCut
from replicator import __version__
from replicator.base.errors import NoPointError, NotFoundError, ReplicatorError, UsageError
from replicator.base.trouble import anew
from replicator.config.changes import Change
from replicator.control.splitter import (
    PROTOCOL,
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
    Ready,
    Reload,
    Reloaded,
    RemoveDisk,
    RemoveGroup,
    Resync,
    StreamOpened,
    Subscribe,
    SyncBegin,
)

Reloading = Callable[[], Awaitable[list[Change]]]


class Groups(Protocol):
    """See agent.splitter.groups.Groups. `instance` names this process."""

    @property
    def instance(self) -> str: ...
    @property
    def logs(self) -> Mapping[str, GroupLog]: ...
    @property
    def unusable(self) -> Mapping[str, ReplicatorError]: ...
    def remove(self, name: str) -> None: ...


class Orders:
    """`reload` reads the configuration and takes it over."""

    def __init__(self, groups: Groups, reload: Reloading) -> None:
        self._all = groups
        self._groups = groups.logs
        self._reload = reload
        self._one_reservation = asyncio.Lock()

    async def carry_out(self, request: AnyRequest) -> Answer:
        """Returns when it is done. Raises ReplicatorError, and OSError from a state directory
        that cannot be written."""
        match request:
            case Hello():
                return HelloAnswer(
                    pid=os.getpid(),
                    instance=self._all.instance,
                    version=__version__,
                    protocol=PROTOCOL,
                )
            case Subscribe():
                return Done()  # the connection takes note of it
            case OpenStream():
                return await self._open_stream(request)
            case Resync():
                return await self._resync(request)
            case Mark():
                return await self._mark(request)
            case DeclareDisk():
                return self._declare_disk(request)
            case Reload():
                return Reloaded(changes=[str(change) for change in await self._reload()])
            case RemoveGroup():
                self._all.remove(request.group)
                return Done()
            case _:
                self._change(request)
                return Done()

    def _change(
        self,
        request: SyncBegin | Ready | AppendDomainXml | CloseStream | RemoveDisk | DropConnections,
    ) -> None:
        group = self._group(request.group)
        match request:
            case SyncBegin():
                group.sync_begin(request.disk, request.reason, source_errors=request.source_errors)
            case Ready():
                group.ready(request.disk, request.connection)
            case AppendDomainXml():
                group.append_domain_xml(request.domain, request.xml)
            case CloseStream():
                if request.stream in (None, group.stream_id):
                    group.close_stream(
                        request.reason, final_cut=request.final_cut, unwatched=request.unwatched
                    )
            case RemoveDisk():
                self._require_libvirt(group).remove_disk(request.disk)
            case DropConnections():
                group.drop_connections()
            case _:
                assert_never(request)

    def _declare_disk(self, request: DeclareDisk) -> DiskDeclared:
        group = self._require_libvirt(self._group(request.group))
        disk = group.declare_disk(request.disk, request.size, request.instance)
        return DiskDeclared(index=disk.index)

    def _require_libvirt(self, group: GroupLog) -> GroupLog:
        if group.settings.driver == "external":
            name = group.settings.name
            raise UsageError(f"the disks of group {name!r} are those of the config file")
        return group

    async def _open_stream(self, request: OpenStream) -> StreamOpened:
        group = self._group(request.group)
        async with self._one_reservation:
            reserved = await aside(
                asyncio.get_running_loop(),
                partial(group.reservation.new_stream, request.above_ordinal),
            )
            group.cutter.behind(request.above_time_ns)
            group.start_stream(reserved, request.reason)
        stream = group.writer.stream
        assert stream is not None
        return StreamOpened(
            stream=str(stream.name.stream),
            ordinal=stream.name.ordinal,
            first_lsn=stream.first_lsn,
        )

    async def _resync(self, request: Resync) -> Done:
        group = self._group(request.group)
        async with self._one_reservation:
            reserved = None
            if group.settings.driver == "external" and group.resync_needs_stream(
                request.above_ordinal
            ):
                reserved = await aside(
                    asyncio.get_running_loop(),
                    partial(group.reservation.new_stream, request.above_ordinal),
                )
            group.cutter.behind(request.above_time_ns)
            group.resync(request.above_ordinal, reserved)
        return Done()

    async def _mark(self, request: Mark) -> Marked:
        group = self._group(request.group)
        made: asyncio.Future[MadeCut | None] = asyncio.get_running_loop().create_future()
        group.mark(
            request.label,
            request.kind,
            partial(_resolve, made),
            expire_ns=request.expire_ns,
            not_after_ns=request.not_after_ns,
        )
        stream = group.writer.stream  # a cut is of the stream that is open now
        cut = await made
        if cut is None:
            raise NoPointError(f"group {request.group!r} lost continuity: {group.reason}")
        assert stream is not None, "a cut was made in it"
        return Marked(lsn=cut.lsn, time_ns=cut.time_ns, ordinal=stream.name.ordinal)

    def _group(self, name: str) -> GroupLog:
        if name in self._all.unusable:
            raise anew(self._all.unusable[name])
        if name not in self._groups:
            raise NotFoundError(
                f"the splitter has no group {name[:80]!r}", hint="see its config, and reload it"
            )
        return self._groups[name]


def _resolve(made: asyncio.Future[MadeCut | None], cut: MadeCut | None) -> None:
    if not made.done():
        made.set_result(cut)
