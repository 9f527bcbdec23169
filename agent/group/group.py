# SPDX-License-Identifier: Apache-2.0
"""One group in the agent: its driver, its shipper, its link to the receiver, its state.

Two tasks: the driver's loop (agent.group.driving) and the receiver link. The splitter's
statuses come in by `publish`. Nothing here is remembered over a restart but what agent.memory
holds: the state is observed anew.

A resync that a person orders readmits a receiver that was rolled back, then leaves the rest to the
driver; orders of the driver never overlap (one lock).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from agent.drivers.driver import Driver, Host, Look
from agent.group.driving import FAILED_LIMIT_SECONDS, LOOK_SECONDS, Driving
from agent.group.leaving import Leaving
from agent.group.standing import Seen, Standing
from agent.links.receiver_link import ReceiverLink, Wishes
from agent.links.splitter_link import GroupOrders, SplitterLink
from agent.memory import AgentMemory
from agent.quiesce.schedule import Schedule
from agent.quiesce.sequence import Quiesced, Quiescence
from agent.retrying.backoff import Backoff
from agent.retrying.supervision import Supervision
from agent.shipping.marks import Marks, PendingMark
from agent.shipping.progress import Renew
from agent.shipping.shipper import Shipper
from replicator import __version__
from replicator.base.clock import NS_PER_S, Clock, rfc3339
from replicator.base.errors import (
    DamageError,
    IdentityError,
    NoPointError,
    NoSpaceError,
    NotFoundError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
    VersionError,
)
from replicator.base.pointtext import check_label, label_text
from replicator.base.storage import Storage
from replicator.base.units import format_duration
from replicator.config.agent import AgentConfig, GroupConfig
from replicator.control import requests, types
from replicator.control.service import Report
from replicator.control.splitter import Marked, SplitterGroupStatus
from replicator.states.words import Promise, State, Trouble, Verdict
from replicator.wire.link import Connector
from replicator.wire.messages import Hello, OfferedDisk, Ping, Point, Welcome

log = structlog.get_logger("replicator.agent.group")

RESYNC_SECONDS = 15.0
# With more than this share of the spool taken, a sync ships rather than waits for digests.
IMPATIENT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the groups of one agent share."""

    config: AgentConfig
    storage: Storage
    clock: Clock
    memory: AgentMemory
    instance: str
    splitter: SplitterLink
    connector: Connector
    pool: Executor
    hosts: Mapping[str, Supervision] = field(default_factory=dict)
    """What becomes of the kinds of source that several groups share."""


class GroupAgent:
    """See the head of this file."""

    def __init__(self, around: Surroundings, config: GroupConfig, host: Host) -> None:
        self.name = config.name
        self.config = config
        self.status: SplitterGroupStatus | None = None
        self._around = around
        spool = around.config.splitter
        directories: list[Path] = [
            directory / config.name for directory in (spool.spool_memory_dir, spool.spool_disk_dir)
        ]
        self.shipper = Shipper(around.storage, directories, config.name, around.memory)
        self._orders = GroupOrders(
            around.splitter,
            config.name,
            lambda: (self.shipper.above_ordinal, self.shipper.above_time_ns),
        )
        self._driving = Driving(config.name, self._step)
        self._driver: Driver = host.driver(config, self._orders, self._driving.wake)
        self.quiescence = Quiescence(config, self._driver.freezer, around.memory, around.clock)
        self.schedule = (
            None
            if config.mark_every_ns is None
            else Schedule(config.name, config.mark_every_ns, around.clock, self._mark_by_schedule)
        )
        self._host = host
        self._leaves = False
        self._one_order = asyncio.Lock()
        self._giving_up = Backoff(LOOK_SECONDS, FAILED_LIMIT_SECONDS)
        self._marks = Marks()
        self._given_up = ""  # the stream that was closed because it cannot be shipped
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.supervision = Supervision(config.name, self._changed.set)
        self.link = ReceiverLink(
            config.name,
            around.connector,
            self.shipper,
            around.pool,
            Wishes(
                hello=self._hello,
                patient=lambda: self._spool_share() < IMPATIENT_SHARE,
                marks=self._marks,
                session=self._session,
                renew=self._renew,
                changed=self._observe,
                ping=self._ping,
                heard=self._heard,
            ),
        )
        self._standing = Standing(
            Promise(config.checkpoint_interval_ns / NS_PER_S, config.rpo_alarm_ns / NS_PER_S),
            around.clock,
            room_bytes=self._spool_bytes_max(),
        )
        self._shown = self._said = State.ATTACHING

    # -- life

    async def run(self) -> None:
        """Runs until it is cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                keep = self.supervision.keep
                tasks.create_task(keep("shipping", self.link.run))
                tasks.create_task(keep("driver", self._driving.run))
                tasks.create_task(keep("watch", self._watch))
                tasks.create_task(keep("thawing", self.quiescence.recover))
                if self.schedule is not None:
                    tasks.create_task(keep("schedule", self.schedule.run))
        finally:
            self._host.forget(self._driver)
            await self.quiescence.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def reload(self, around: Surroundings) -> None:
        """Another group's configuration, or what all share, has changed."""
        self._around = around
        self._standing.room_bytes = self._spool_bytes_max()

    async def leave(self, disks: Collection[str] | None = None) -> None:
        """The group, or these disks of it, left the configuration: they end in good order, and
        this object is not used any more. `run` goes on until it is cancelled."""
        self._leaves = True
        leaving = Leaving(self.name, self._orders, self._driver, self._shipped)
        async with self._one_order:
            if disks is None:
                await leaving.group([disk.disk_name for disk in self.config.disks])
            else:
                await leaving.disks(disks)

    async def _shipped(self) -> None:
        splitter = self._around.splitter
        while self.status is not None and not (splitter.current and self.lag_bytes() == 0):
            self._changed.clear()
            await self._changed.wait()

    def publish(self, status: SplitterGroupStatus | None) -> None:
        """The splitter's newest word on this group; None while it cannot be heard."""
        self.status = status
        self._standing.heard_splitter(status)
        self.link.publish(status)
        self._observe()
        self._driving.wake()

    async def _watch(self) -> None:
        """A state turns also because time has passed."""
        while True:
            self._observe()
            await asyncio.sleep(LOOK_SECONDS)

    async def _step(self) -> bool | None:
        async with self._one_order:
            look = self._look()
            if self._leaves or look is None or not self._around.splitter.current:
                return None  # the next status wakes us
            if self.link.refused is not None:
                return None
            return await self._driver.step(look)

    def _look(self) -> Look | None:
        if self.status is None:
            return None
        return Look(self.status, self._spool_share(), self.link.connected)

    def _observe(self) -> None:
        self._standing.note_progress(self.shipper.progress, is_connected=self.link.connected)
        seen = self._seen()
        shown, own = self._standing.stand(seen), self._standing.own(seen)
        if shown.state is not self._shown:
            log.info(
                "state",
                group=self.name,
                before=self._shown.value,
                now=shown.state.value,
                reason=shown.reason,
            )
            self._shown = shown.state
        if own.state is not self._said:
            self._said = own.state
            self.link.say_soon()
        self._changed.set()

    def _seen(self) -> Seen:
        self._standing.note_synced(self._synced_bytes())
        return Seen(
            progress=self.shipper.progress,
            is_connected=self.link.connected,
            link=self.link.trouble,
            refused=self.link.refused,
            door=_at_the_door(self.link.last_word),
            trouble=self._trouble(),
            is_down=self._driver.is_down,
            left_out=self._driver.left_out.reason != "",
            read_back_seconds=self._driver.read_back_seconds,
            recovery=self._driver.recovery,
        )

    def _synced_bytes(self) -> int:
        disks = () if self.status is None else self.status.disks
        return sum(self.shipper.synced_bytes(disk.index) or 0 for disk in disks)

    @property
    def state(self) -> State:
        return self.verdict().state

    def verdict(self) -> Verdict:
        """What there is to say of the group now."""
        return self._standing.stand(self._seen())

    # -- what the link asks for

    def _hello(self, generation_seen: int) -> Hello:
        return Hello(
            agent=self._around.config.agent.name,
            instance=self._around.instance,
            group=self.name,
            driver=self.config.driver,
            generation_seen=generation_seen,
            disks=[OfferedDisk(disk.name, disk.size, disk.instance) for disk in self._driver.disks],
            version=__version__,
        )

    def _ping(self) -> Ping:
        return Ping(said=self._standing.said(self._seen()))

    def _heard(self, ping: Ping) -> None:
        self._standing.heard_receiver(ping)
        self._observe()

    def _session(self, welcome: Welcome) -> None:
        if welcome.newest_point is not None:
            self._marks.told([welcome.newest_point])

    def _renew(self, renew: Renew) -> None:
        """The receiver cannot go on with the live stream: it ends here, the driver sees to it."""
        status = self.status
        if status is None or status.stream != renew.stream or self._given_up == renew.stream:
            return
        if self._giving_up.left(asyncio.get_running_loop().time()):
            return  # it could not be closed; the receiver's word comes again
        self._given_up = renew.stream
        if status.state not in ("closed", "lost"):
            log.warning("given up", group=self.name, stream=renew.stream, reason=renew.reason)
            self._marks.stream_over(status.ordinal, 0, renew.reason)
            self._later(self._give_up(renew))

    async def _give_up(self, renew: Renew) -> None:
        try:
            async with self._one_order:
                await self._orders.give_up(renew.stream, renew.reason)
        except ReplicatorError as error:
            self._given_up = ""
            self._giving_up.failed(str(error), asyncio.get_running_loop().time())
            log.warning("stream not closed", group=self.name, reason=str(error))
        else:
            self._giving_up.succeeded()

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(self.supervision.ended, "errand"))

    # -- orders

    async def mark(self, request: requests.MarkRequest, report: Report) -> types.MarkedPoint:
        self._require_admitted()
        cut = partial(self._orders.mark, request.label, expire_ns=request.expire_seconds * NS_PER_S)
        async with self._label_reserved(request.label):
            if request.quiesce:
                self._require_ready()
                made = await self.quiescence.run(request.label, cut)
            else:
                made = Quiesced(await cut("crash"), "crash")
            mark = self._marks.add(request.label, self._ordinal_of(made.marked), made.marked.lsn)
        log.info("marked", group=self.name, label=request.label, kind=made.kind, lsn=mark.lsn)
        point = None
        if request.wait:
            point = await self._wait_for(mark, request.timeout_seconds, report)
        return _marked_point(made, request.label, point)

    def _ordinal_of(self, marked: Marked) -> int:
        """A splitter that does not say it has told of the stream in its status."""
        status = self.status
        if marked.ordinal or status is None or status.first_lsn >= marked.lsn:
            return marked.ordinal
        return status.ordinal

    async def _mark_by_schedule(self) -> None:
        expire_seconds = int(self.config.mark_expire_ns) // NS_PER_S
        request = requests.MarkRequest(
            quiesce=self.config.mark_quiesce, expire_seconds=expire_seconds
        )
        await self.mark(request, lambda _: None)

    def _require_ready(self) -> None:
        """No guest is frozen for a cut that cannot be made."""
        if self.status is None or self.status.state != "ready":
            verdict = self.verdict()
            raise NoPointError(
                f"group {self.name!r} is {verdict.state.word}: no point can be made now",
                hint=_in_one(verdict),
            )

    @asynccontextmanager
    async def _label_reserved(self, label: str | None) -> AsyncIterator[None]:
        """Nobody else uses the label meanwhile, and it stays in use if the block ends well."""
        if label is None:
            yield
            return
        check_label(label)
        if label in self._marks.labels:
            raise UsageError(
                f"group {self.name!r} has a mark {label!r} under way", hint="choose another label"
            )
        self._marks.reserve(label)
        try:
            known = await self.link.ask_label(label)
            if known is not None and known.taken:
                raise _taken(label, self.name, known.point)
            yield
        finally:
            self._marks.release(label)

    async def _wait_for(self, mark: PendingMark, limit_seconds: int, report: Report) -> Point:
        """Until it is decided. Raises UnreachableError where that takes too long: the mark stays
        under way all the same."""
        what = ""
        try:
            async with asyncio.timeout(limit_seconds):
                while not mark.point.done():
                    self._require_admitted()
                    progress = self.shipper.progress
                    done = min(progress.durable_lsn or 0, mark.lsn)
                    what = self._awaited()
                    report(types.Progress(done=done, total=mark.lsn, what=what))
                    await asyncio.wait([mark.point], timeout=LOOK_SECONDS)
        except TimeoutError:
            raise UnreachableError(
                f"the mark is no point after {format_duration(limit_seconds * NS_PER_S)}: {what}",
                hint="it becomes one when the receiver has it: points GROUP, where that runs",
            ) from None
        return mark.point.result()

    def _awaited(self) -> str:
        """What a mark waits for."""
        verdict = self.verdict()
        if verdict.reason:
            return f"{verdict.state.word}: {verdict.reason}"
        return "waiting for the receiver"

    def _require_admitted(self) -> None:
        refused = self.link.refused
        if refused is not None:
            raise NoPointError(
                f"no point of group {self.name!r} can be made: {refused.reason}",
                hint=refused.remedy,
            )

    async def resync(self) -> types.GroupStatus:
        """Returns when the sync has begun."""
        ordinal, failures = self._require_look().group.ordinal, self._driving.failures
        _check_not_refused(self.name, self.link.last_word)
        self.link.readmit()
        async with self._one_order:  # whoever had it may have waited for a splitter that is gone
            await self._driver.resync(self._require_look())
        self.link.refused = None
        self._driving.wake(anew=True)
        try:
            async with asyncio.timeout(RESYNC_SECONDS):
                while not self._sync_has_begun(ordinal):
                    _check_not_refused(self.name, self.link.last_word)
                    if self._driving.failures > failures:
                        raise UsageError(
                            f"the resync of group {self.name!r} cannot begin: it is tried again"
                            f" when the source has changed: {self._driving.problem}",
                        )
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise UnreachableError(
                f"the resync of group {self.name!r} has not begun within {RESYNC_SECONDS:.0f} s",
                hint=_in_one(self.verdict()),
            ) from None
        return self.group_status()

    def _require_look(self) -> Look:
        look = self._look()
        if look is None:
            trouble = self._trouble()
            raise UnreachableError(
                f"group {self.name!r} has no splitter: {trouble.reason}", hint=trouble.remedy
            )
        return look

    def _sync_has_begun(self, above_ordinal: int) -> bool:
        status = self.status
        return (
            status is not None
            and status.ordinal > above_ordinal
            and any(disk.state != "idle" for disk in status.disks)
        )

    # -- figures

    def _trouble(self) -> Trouble:
        """What keeps the source's side from going on."""
        host = self._around.hosts.get(self.config.driver)
        if died := self.supervision.problem or (host.problem if host is not None else ""):
            return Trouble(died)
        if self.status is None:
            return self._no_status()
        if self._driving.problem:
            return Trouble(self._driving.problem)
        left_out = self._driver.left_out
        return left_out if left_out.reason else Trouble(self._driver.problem, self._driver.remedy)

    def _no_status(self) -> Trouble:
        """Why the splitter tells nothing of this group."""
        if self._around.splitter.problem:
            return Trouble(
                self._around.splitter.problem,
                "start the splitter: systemctl start replicator-splitter",
            )
        return Trouble(
            "the splitter does not know this group: it read another configuration when it started",
            "let it read the file again: replicator reload",
        )

    def rpo_seconds(self) -> float | None:
        """Age of the newest moment that the receiver is known to hold."""
        return self._standing.lag_seconds(self.shipper.progress)

    def lag_bytes(self) -> int | None:
        durable = self.shipper.progress.durable_lsn
        if self.status is None or durable is None or self.status.stream is None:
            return None
        return max(0, self.status.end_lsn - max(durable, self.status.first_lsn))

    def spool_bytes(self) -> int | None:
        status = self.status
        return None if status is None else status.memory_bytes + status.disk_bytes

    def _spool_bytes_max(self) -> int:
        spool = self._around.config.splitter
        return int(spool.spool_memory_bytes) + int(spool.spool_disk_bytes)

    def _spool_share(self) -> float:
        budget = self._spool_bytes_max()
        return (self.spool_bytes() or 0) / budget if budget else 0.0

    def group_status(self) -> types.GroupStatus:
        progress = self.shipper.progress
        point = progress.newest_point
        verdict = self.verdict()
        return types.GroupStatus(
            name=self.name,
            state=verdict.state.word,
            rpo_seconds=self.rpo_seconds(),
            durable_lsn=progress.durable_lsn,
            applied_lsn=progress.applied_lsn,
            points=progress.points,
            newest_point=None if point is None else point_of(point, progress.held_until_ns),
            disks=self._disk_statuses(),
            reason=verdict.reason,
            remedy=verdict.remedy,
            end_watched=verdict.is_watched if verdict.state is State.SHUT_OFF else None,
            unprotected_seconds=self._standing.unprotected_seconds(),
            peer=self.link.peer if self.link.connected else None,
            lag_bytes=self.lag_bytes(),
            spool_bytes=self.spool_bytes(),
        )

    def _disk_statuses(self) -> list[types.DiskStatus]:
        if self.status is None or not self.status.disks:
            return [types.DiskStatus(name=one.name, size=one.size) for one in self._driver.disks]
        return [
            types.DiskStatus(
                name=disk.name,
                size=disk.size,
                synced_bytes=_synced(self.shipper.synced_bytes(disk.index), disk.size),
            )
            for disk in self.status.disks
        ]


def point_of(point: Point, held_until_ns: int = 0) -> types.Point:
    """The wire's point as the control API says it."""
    until_ns = max(point.time_ns, point.until_ns, held_until_ns)
    return types.Point(
        sequence=point.sequence,
        time=rfc3339(point.time_ns),
        until=rfc3339(until_ns),
        kind=point.kind,
        label=None if point.label is None else label_text(point.label),
    )


def _marked_point(made: Quiesced, label: str | None, point: Point | None) -> types.MarkedPoint:
    """What is said of a mark: with number and time of the receiver's point, or without."""
    renamed = ""
    if point is not None and point.label != label:
        renamed = f"the receiver had a point labelled {label!r} meanwhile: it is {point.label!r}"
    time = rfc3339(made.marked.time_ns if point is None else point.time_ns)
    return types.MarkedPoint(
        sequence=None if point is None else point.sequence,
        time=time,
        until=time if point is None else point_of(point).until,
        kind=made.kind,
        label=label if point is None else point.label,
        frozen_seconds=made.frozen_seconds,
        notice="; ".join(filter(None, (made.notice, renamed))) or None,
    )


def _synced(passed_bytes: int | None, size: int) -> int | None:
    """Guest writes pass too, so what has passed may exceed the disk."""
    return None if passed_bytes is None else min(passed_bytes, size)


def _check_not_refused(group: str, last_word: ReplicatorError | None) -> None:
    """Raises what the receiver says of each attempt, where a sync changes nothing about it."""
    is_final = type(last_word) in _FINAL
    if last_word is not None and is_final:
        raise type(last_word)(
            f"no resync of group {group!r} can begin: the receiver says: {last_word.message}",
            hint=last_word.hint,
        )


_FINAL = (ReplicatorError, DamageError, IdentityError, NotFoundError, OwnedError, VersionError)
"""Not those that pass by themselves, nor those that a new stream ends."""


def _at_the_door(last_word: ReplicatorError | None) -> Verdict | None:
    """What the receiver's refusal says of its own side."""
    state = (
        State.DAMAGED
        if isinstance(last_word, DamageError)
        else State.PAUSED
        if isinstance(last_word, NoSpaceError)
        else None
    )
    if state is None or last_word is None:
        return None
    there = "replicator status at the receiver says what to do"
    return Verdict(state, last_word.message, last_word.hint or there)


def _in_one(verdict: Verdict) -> str:
    return "; ".join(text for text in (verdict.reason, verdict.remedy) if text)


def _taken(label: str, group: str, point: Point | None) -> UsageError:
    which = "" if point is None else f": #{point.sequence} of {rfc3339(point.time_ns)}"
    return UsageError(
        f"group {group!r} has a point labelled {label!r} already{which}",
        hint="choose another label",
    )
