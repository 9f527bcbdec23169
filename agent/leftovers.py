# SPDX-License-Identifier: Apache-2.0
"""What is left at the source of groups that the configuration does not name, and the order to
forget it.

A group that left the configuration leaves what could not be shipped in the spool, where it takes
the room of the others, and what the agent remembered of it. If the agent was not there when it
left, its block copies run on besides, and the splitter goes on recording. `status` says what there
is.

`forget` ends and removes it, in the order in which nothing is missed: the block copies, so that no
guest's writes come any more; the group in the splitter, so that nobody appends; the spool; what was
remembered. Each step may be ordered again. The splitter's own state file of the group stays: no LSN
and no ordinal is ever given twice, also not to a group that comes back under its name.

Nothing at the receiver is touched: see receiver.orders.leftovers.

Concurrency: the event loop; files are measured and deleted in threads. The caller lets no reload
run beside `forget`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import structlog

from agent.links.splitter_link import GroupOrders, SplitterLink
from agent.memory import AgentMemory
from replicator.base.daemon import hold_lock
from replicator.base.errors import (
    NotFoundError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.base.names import is_name
from replicator.base.trees import tree_bytes
from replicator.base.trouble import words_of
from replicator.config.agent import AgentConfig
from replicator.control.requests import ForgetRequest
from replicator.control.types import ForgetResult, Leftover

log = structlog.get_logger("replicator.agent.leftovers")

MEASURE_SECONDS = 60.0

EndCopies = Callable[[str], Awaitable[list[str]]]
"""Ends every block copy of a group that goes to our splitter: each as DOMAIN/TARGET. Raises
UnreachableError where nobody can be asked whether there is one."""


class Leftovers:
    """See the head of this file. `config` gives the configuration as it is now, `served` the groups
    that the splitter has."""

    def __init__(
        self,
        config: Callable[[], AgentConfig],
        memory: AgentMemory,
        splitter: SplitterLink,
        served: Callable[[], set[str]],
        end_copies: EndCopies,
    ) -> None:
        self._config = config
        self._memory = memory
        self._splitter = splitter
        self._served = served
        self._end_copies = end_copies
        self._bytes: dict[str, int | None] = {}
        self._one = asyncio.Lock()
        self._wanted = asyncio.Event()

    # -- looking

    def listed(self) -> list[Leftover]:
        """What there is now; sizes as they were measured last, and soon if never."""
        if any(name not in self._bytes for name in self._names()):
            self._wanted.set()
        return [
            Leftover(
                name=name,
                bytes=self._bytes.get(name),
                places=[str(place) for place in self._places(name)],
            )
            for name in self._names()
        ]

    async def run(self) -> None:
        """Measures now and then, and when it is asked for, until it is cancelled."""
        while True:
            self._wanted.clear()
            for name in self._names():
                try:
                    self._bytes[name] = await self._measured(name)
                except OSError as error:
                    self._bytes[name] = None
                    log.warning("not measured", group=name, reason=words_of(error).message)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), MEASURE_SECONDS)

    def _names(self) -> list[str]:
        found = set(self._memory.remembered_groups()) | self._served()
        for tier in self._tiers():
            found |= _folders(tier)
        return sorted(found - {group.name for group in self._config().groups})

    def _places(self, group: str) -> list[Path]:
        return [tier / group for tier in self._tiers() if (tier / group).exists()]

    def _tiers(self) -> tuple[Path, Path]:
        splitter = self._config().splitter
        return splitter.spool_memory_dir, splitter.spool_disk_dir

    async def _measured(self, group: str) -> int:
        return sum([await asyncio.to_thread(tree_bytes, place) for place in self._places(group)])

    # -- forgetting

    async def forget(self, group: str, request: ForgetRequest) -> ForgetResult:
        """Raises UsageError, NotFoundError, UnreachableError, OSError."""
        async with self._one:
            self._check(group)
            places = self._places(group)
            result = ForgetResult(
                group=group,
                bytes=await self._measured(group),
                places=[str(place) for place in places],
                dry_run=request.dry_run,
            )
            if request.dry_run:
                return result
            if request.confirm != group:
                raise UsageError("to forget a group for good its name has to be given twice")
            copies, notices = await self._ended_copies(group)
            await self._let_go(group)
            notices += self._frozen(group)
            for place in places:
                await asyncio.to_thread(shutil.rmtree, place)
            self._memory.forget(group)
            self._bytes.pop(group, None)
            log.warning("group forgotten", group=group, bytes=result.bytes, copies=copies)
            return ForgetResult(
                group=group,
                bytes=result.bytes,
                places=result.places,
                copies=copies,
                notice="; ".join(notices),
            )

    def _check(self, group: str) -> None:
        if any(each.name == group for each in self._config().groups):
            raise UsageError(
                f"group {group!r} is in the configuration: it is replicated, and not forgotten",
                hint="take it out of agent.toml, then: replicator reload",
            )
        if group not in self._names():
            raise NotFoundError(
                f"nothing is left over of a group {group!r}",
                hint="`replicator status` lists what is",
            )

    async def _ended_copies(self, group: str) -> tuple[list[str], list[str]]:
        try:
            return await self._end_copies(group), []
        except UnreachableError as error:
            return [], [f"whether a block copy of it runs could not be asked: {error.message}"]

    async def _let_go(self, group: str) -> None:
        """Returns when no splitter appends to the group any more."""
        if self._splitter.problem:
            self._require_no_splitter()
        elif group in self._served():
            orders = GroupOrders(self._splitter, group, lambda: (0, 0))
            await self._splitter.reload()
            try:
                await orders.close_stream("the group was forgotten")
                await orders.remove_group()
            except NotFoundError:
                pass  # the reload has let go of it
            await self._splitter.until_current()  # so that nobody is told of it by an older one

    def _require_no_splitter(self) -> None:
        """One that cannot be heard may append all the same."""
        config = self._config()
        try:
            with hold_lock(config.agent.state_dir / "splitter.lock", "splitter"):
                pass
        except OwnedError:
            raise UnreachableError(
                f"the splitter runs and cannot be asked: {self._splitter.problem}",
                hint="it may append to that group: try again when it answers",
            ) from None

    def _frozen(self, group: str) -> list[str]:
        try:
            note = self._memory.frozen(group)
        except ReplicatorError as error:
            return [f"whether its guests are frozen is not known: {error.message}"]
        if note is None:
            return []
        domains = ", ".join(note.domains)
        return [f"its guests may be frozen ({domains}): virsh domfsthaw thaws one"]


def _folders(tier: Path) -> set[str]:
    """The groups that have a folder there. Nothing in it is looked at."""
    try:
        with os.scandir(tier) as entries:
            return {entry.name for entry in entries if is_name(entry.name) and entry.is_dir()}
    except OSError:
        return set()
