# SPDX-License-Identifier: Apache-2.0
"""All groups of the host: made from the configuration, timed, and changed with it.

A changed configuration is taken over while guests are served (`reload`), so that no other group
pays for what an operator does to one:

* a group or an external disk that is new is served from then on;
* intervals, `max_stall` and budgets hold from the next cut, append and segment on;
* a group that is gone ends in order, with a last cut, if one may be made, and its stream closed. By
  the agent's order that is when the agent says so, having ended its copies and shipped the rest; by
  ours alone an external one goes at once, its clients dropped, and a libvirt one when its copies
  have ended, for a copy that we cut off is an error in somebody's log. Until then it is *leaving*:
  served as before, and it stays if it comes back to the file. Its spool stays where it is.

One group's trouble is that group's. What its state file, its spool or a fault of the program does
to it ends its stream, with the reason in its status; guests go on being answered, the other groups
do not notice. A group whose state file cannot be read is *unusable*: it has no stream and no
exports, until the splitter is started anew, or a reload finds the file readable.

All or nothing: what can fail, the reservation of a new group's first stream on a disk, comes before
anything is changed. What a start alone can change stays as it was.

Concurrency: the event loop's thread. A reload waits for the disk in threads; orders go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Final
from uuid import uuid4

from agent.naming.external_instance import external_instance
from agent.splitter.control import Publisher
from agent.splitter.group import GroupLog, GroupSettings
from agent.splitter.lane import ThreadLane, aside
from agent.splitter.reservation import NewStream, Reservation, first_sequence
from agent.splitter.status import dump_of, lost_status, splitter_status
from agent.splitter.tiers import SpoolTiers, Tier
from agent.splitter.trouble import named
from agent.splitter.writer import Surroundings
from replicator.base.clock import NS_PER_S, Clock
from replicator.base.errors import NotFoundError, ReplicatorError, UsageError
from replicator.base.storage import Storage
from replicator.config.agent import AgentConfig, GroupConfig, SplitterSection
from replicator.config.changes import Change, agent_changes, in_force
from replicator.control.splitter import SplitterStatus

_log = logging.getLogger(__name__)

FAULT_NS: Final = NS_PER_S
"""How long a group's timer rests after a fault of the program."""

COUNT_SECONDS: Final = 1.0
"""How often it is looked up what the spool's files take, for the status."""


class GroupTimer:
    """Calls a group's `tick` when it is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None
        self._due_ns = 0
        self.group: GroupLog | None = None

    def wake(self, due_ns: int) -> None:
        """No later than this."""
        if self._handle is not None:
            if self._due_ns <= due_ns:
                return
            self._handle.cancel()
        self._due_ns = due_ns
        delay_ns = max(0, due_ns - self._clock.monotonic_ns())
        self._handle = self._loop.call_later(delay_ns / 1e9, self._tick)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _tick(self) -> None:
        self._handle = None
        assert self.group is not None
        try:
            due_ns = self.group.tick()
        except Exception as error:  # noqa: BLE001 - a supervision: a timer must not end unseen
            self.group.lose_by(error)
            due_ns = self._clock.monotonic_ns() + FAULT_NS
        self.wake(due_ns)


class Groups:
    """See the head of this file. `logs` is the same mapping for as long as this lives: exports and
    orders look groups up in it."""

    def __init__(
        self, config: AgentConfig, storage: Storage, clock: Clock, *, memory_is_sticky: bool
    ) -> None:
        self._config = config
        self._storage = storage
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.instance = str(uuid4())
        self.tiers = _tiers(config.splitter, storage, memory_is_sticky=memory_is_sticky)
        self.logs: dict[str, GroupLog] = {}
        self.publisher = Publisher(self._loop, self.status)
        self.moved = asyncio.Event()  # something has changed: see `drained`
        self._timers: dict[str, GroupTimer] = {}
        self._leaving: set[str] = set()
        self._is_agents = False  # the agent says when each of them goes
        self._one_reload = asyncio.Lock()
        self._counting = False
        self._counter: asyncio.TimerHandle | None = None
        self._count_lane = ThreadLane(self._loop, "spool-count")
        self._sequence = count(first_sequence(storage, config.agent.state_dir))
        self.unusable: dict[str, ReplicatorError] = {}
        for group in config.groups:
            try:
                self._add(group, self._reservation_of(group))
            except Exception as error:  # noqa: BLE001 - a supervision
                self.unusable[group.name] = named(group.name, "start", error)

    def begin(self) -> None:
        """Before anybody can connect."""
        for log in self.logs.values():
            _begin(log)
        for timer in self._timers.values():
            timer.wake(0)
        self._count()

    # Changes.

    async def reload(self, config: AgentConfig, *, with_agent: bool = False) -> list[Change]:
        """What was changed, and what only a start can change, which was not. `with_agent`: it
        says which groups that are gone may go (`remove`). Raises OSError and ReplicatorError with
        everything as it was."""
        async with self._one_reload:
            found = agent_changes(self._config, config)
            config = in_force(self._config, config)
            added, reserved = [], []
            for group in config.groups:
                if group.name in self.logs:
                    continue
                try:
                    reserved.append(await self._reserved(group))
                except (OSError, ReplicatorError):
                    if group.name not in self.unusable:
                        raise
                else:
                    added.append(group)
            for group, (reservation, first) in zip(added, reserved, strict=True):
                _begin(self._add(group, reservation), "the group is new", first)
                self.unusable.pop(group.name, None)
                self._timers[group.name].wake(0)
            self._take_over(config)
            named_groups = {group.name for group in config.groups}
            self._leaving = set(self.logs) - named_groups
            for name in set(self.unusable) - named_groups:
                del self.unusable[name]
            self._config = config
            self._is_agents = with_agent
            if not with_agent:
                for name in list(self._leaving):
                    if self.logs[name].settings.driver == "external":
                        self._let_go(name)
                self._let_go_of_the_idle()
        self._changed()
        return found

    def remove(self, name: str) -> None:
        """Its agent has ended it. Raises NotFoundError, and UsageError for a group that is still
        in the configuration."""
        if name not in self.logs:
            raise NotFoundError(f"the splitter has no group {name[:80]!r}")
        if name not in self._leaving:
            raise UsageError(f"group {name!r} is in the configuration of the splitter")
        self._let_go(name)

    async def _reserved(self, group: GroupConfig) -> tuple[Reservation, NewStream | None]:
        """In a thread: it reads and syncs files."""

        def work() -> tuple[Reservation, NewStream | None]:
            reservation = self._reservation_of(group)
            is_first = group.driver == "external" and reservation.known_ordinal() == 0
            return reservation, reservation.new_stream() if is_first else None

        return await aside(self._loop, work)

    def _take_over(self, config: AgentConfig) -> None:
        splitter = config.splitter
        self.tiers.memory.limit_bytes = int(splitter.spool_memory_bytes)
        self.tiers.disk.limit_bytes = int(splitter.spool_disk_bytes)
        for group in config.groups:
            log = self.logs.get(group.name)
            if log is None or log.settings.driver != group.driver:
                continue  # it takes a start, and so does all else of that group
            log.resettle(
                checkpoint_interval_ns=group.checkpoint_interval_ns,
                max_stall_ns=splitter.max_stall_ns,
            )
            if group.driver == "external":
                _match_disks(log, group)
            self._timers[group.name].wake(0)

    def _let_go_of_the_idle(self) -> None:
        """Of the groups that are leaving: those that nobody writes to any more."""
        for name in list(self._leaving):
            if not any(disk.links for disk in self.logs[name].roster.disks.values()):
                self._let_go(name)

    def _let_go(self, name: str) -> None:
        log = self.logs.pop(name)
        self._leaving.discard(name)
        self._timers.pop(name).stop()
        log.shut_down()
        log.drop_connections()
        self.tiers.release(name)
        _log.info("group removed", extra={"group": name})

    # Making.

    def _reservation_of(self, group: GroupConfig) -> Reservation:
        spool = self.tiers.directories(group.name)
        return Reservation(self._storage, self._config.agent.state_dir, group.name, spool)

    def _add(self, config: GroupConfig, reservation: Reservation) -> GroupLog:
        timer = self._timers[config.name] = GroupTimer(self._loop, self._clock)
        around = Surroundings(
            storage=self._storage,
            clock=self._clock,
            tiers=self.tiers,
            sequence=self._sequence,
            make_lane=partial(ThreadLane, self._loop, f"spool-{config.name}"),
            make_uuid=uuid4,
            wake=timer.wake,
            changed=self._changed,
        )
        settings = GroupSettings(
            name=config.name,
            driver=config.driver,
            checkpoint_interval_ns=config.checkpoint_interval_ns,
            max_stall_ns=self._config.splitter.max_stall_ns,
        )
        log = timer.group = self.logs[config.name] = GroupLog(settings, around, reservation)
        if config.driver == "external":
            _match_disks(log, config)
        return log

    # What is known.

    def status(self) -> SplitterStatus:
        now_ns = self._clock.monotonic_ns()
        status = splitter_status(self.instance, self.logs.values(), self.tiers, now_ns)
        status.groups.extend(lost_status(name, str(why)) for name, why in self.unusable.items())
        return status

    def told(self) -> Iterator[dict[str, object]]:
        """The state, for the log."""
        yield {"instance": self.instance, "groups": len(self.logs)}
        for group in self.status().groups:
            yield dump_of(group)

    async def drained(self) -> None:
        """Returns in a step in which no append is queued, or after max_stall."""
        try:
            async with asyncio.timeout(self._config.splitter.max_stall_ns / 1e9):
                while any(log.draining for log in self.logs.values()):
                    self.moved.clear()
                    await self.moved.wait()
        except TimeoutError:
            _log.warning("appends are still queued at the end")

    def shut_down(self) -> None:
        for timer in self._timers.values():
            timer.stop()
        if self._counter is not None:
            self._counter.cancel()
        for log in self.logs.values():
            log.shut_down()
        self._count_lane.end()

    def _changed(self) -> None:
        if self._leaving and not self._is_agents:
            self._loop.call_soon(self._let_go_of_the_idle)
        self.moved.set()
        self.publisher.changed()

    def _count(self) -> None:
        """What the files take, for the status. The disk tier is looked at in a thread."""
        self._counter = self._loop.call_later(COUNT_SECONDS, self._count)
        if not self._counting:
            self._counting = True
            self._count_lane.put(self._count_tiers, self._counted)

    def _count_tiers(self) -> None:
        self.tiers.memory.count()
        self.tiers.disk.count()

    def _counted(self, error: Exception | None) -> None:
        self._counting = False
        if error is not None:
            _log.warning("spool cannot be counted", extra={"reason": str(error)})


def _begin(log: GroupLog, why: str = "", first: NewStream | None = None) -> None:
    """A supervision: what comes of it is that group's."""
    try:
        log.begin(why, first)
    except Exception as error:  # noqa: BLE001
        log.lose_by(error)


def _match_disks(log: GroupLog, config: GroupConfig) -> None:
    """The disks of an external group are those of the configuration. One that is new is no member
    before its sync, and one that is gone is none any more."""
    wanted = {disk.disk_name: int(disk.size_bytes or 0) for disk in config.disks}
    for name in [name for name in log.roster.disks if name not in wanted]:
        log.remove_disk(name)
    for name, size in wanted.items():
        known = log.roster.disks.get(name)
        if known is None:  # an external disk that has another size takes another name
            log.declare_disk(name, size, external_instance(config.name, name))


def _tiers(spool: SplitterSection, storage: Storage, *, memory_is_sticky: bool) -> SpoolTiers:
    return SpoolTiers(
        Tier(
            storage, spool.spool_memory_dir, int(spool.spool_memory_bytes), sticky=memory_is_sticky
        ),
        Tier(storage, spool.spool_disk_dir, int(spool.spool_disk_bytes), sticky=True),
    )
