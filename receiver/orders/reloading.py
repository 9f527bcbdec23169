# SPDX-License-Identifier: Apache-2.0
"""A changed configuration, taken over while groups are fed.

Live: groups and their agents, everything of their histories, scrubs, certificates. What a start
alone can change is said, and stays as it was.

* A group that is new is recovered like at a start (its directory may hold an earlier life), and
  takes agents when that has ended. What stops it stops no other.
* A group that is gone: its agent is told and let go, its views are closed, what was acknowledged
  stays durable. Its data is not touched: a leftover, and there again when the group comes back.
* An agent that may not feed a group any more is let go.

All or nothing: the file and the certificates are read and checked before anything is changed; what
comes after cannot fail as a whole.

Concurrency: the event loop; one reload at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from receiver.group.seat import Sitter
from receiver.group.worker import GroupWorker
from receiver.points.policy import policy_of
from receiver.views.open_views import Views
from replicator.base.errors import IdentityError, NotFoundError, ReplicatorError
from replicator.config.changes import in_force, receiver_changes
from replicator.config.receiver import ReceiverConfig, ReceiverGroupConfig
from replicator.control.reloading import reload_result, require_removals
from replicator.control.requests import ReloadRequest
from replicator.control.types import ReloadResult
from replicator.wire.credentials import Credentials

Make = Callable[[ReceiverConfig, ReceiverGroupConfig], GroupWorker]
BringUp = Callable[[dict[str, GroupWorker]], Awaitable[object]]

_log = structlog.get_logger(__name__)


class Reloading:
    """`workers` and `agents` (who may feed each group) are the mappings that the whole receiver
    looks things up in: they are changed in place."""

    def __init__(
        self,
        config: ReceiverConfig,
        load: Callable[[], ReceiverConfig],
        workers: dict[str, GroupWorker],
        agents: dict[str, Sequence[str]],
        views: Views,
        credentials: Credentials,
        *,
        make: Make,
        bring_up: BringUp,
    ) -> None:
        self.config = config
        self._load = load
        self._workers = workers
        self._agents = agents
        self._views = views
        self._credentials = credentials
        self._make = make
        self._bring_up = bring_up
        self._one = asyncio.Lock()

    async def reload(self, request: ReloadRequest) -> ReloadResult:
        """Raises ReplicatorError, OSError; then nothing has changed."""
        async with self._one:
            config = await asyncio.to_thread(self._load)
            found = receiver_changes(self.config, config)
            config = in_force(self.config, config)
            result = reload_result("receiver", self.config.receiver.name, found)
            if request.dry_run:
                return result
            require_removals(request, found)
            section = config.receiver
            files = (section.ca, section.certificate, section.key)
            self._credentials.refresh(files, at_once=True)
            if found:
                await self._take_over(config)
            _log.info("reloaded", changes=[str(change) for change in found])
            return result

    async def by_signal(self) -> None:
        """Whoever sends it has seen what is gone."""
        await self.reload(ReloadRequest(removes_too=True))

    async def _take_over(self, config: ReceiverConfig) -> None:
        self.config = config
        wanted = {group.name: group for group in config.groups}
        for name in [name for name in self._workers if name not in wanted]:
            await self._remove(name)
        for name, group in wanted.items():
            self._agents[name] = group.agents
            if name in self._workers:
                await self._change(config, group)
        new = {
            name: self._make(config, group)
            for name, group in wanted.items()
            if name not in self._workers
        }
        self._workers |= new
        await self._bring_up(new)

    async def _change(self, config: ReceiverConfig, group: ReceiverGroupConfig) -> None:
        worker = self._workers[group.name]
        worker.policy = policy_of(config.history_of(group))
        worker.scrubbing.reload(config.scrub)
        sitter = worker.seat.sitter
        if sitter is not None and sitter.agent not in group.agents:
            what = f"agent {sitter.agent!r} may not feed group {group.name!r} any more"
            await _let_go(sitter, IdentityError(what))

    async def _remove(self, name: str) -> None:
        """No hello is answered from here on. It counts as one of the groups until it is closed, so
        that nobody takes its folder for what is left over."""
        self._agents.pop(name, None)
        worker = self._workers[name]
        worker.begin_closing()
        if worker.seat.sitter is not None:
            what = f"group {name!r} was taken out of the receiver's configuration"
            await _let_go(worker.seat.sitter, NotFoundError(what))
        await self._views.close_group(name)
        await worker.close()
        del self._workers[name]
        _log.info("group.removed", group=name)


async def _let_go(sitter: Sitter, reason: ReplicatorError) -> None:
    """Returns when nothing of its session reaches the group any more."""
    sitter.close(reason)
    await sitter.fence()
