# SPDX-License-Identifier: Apache-2.0
"""Agents' hellos: who comes, whether it may, and which group it feeds from here on.

Before a hello is accepted a peer costs one TLS connection and one body of at most 16 KiB, for at
most ten seconds, and only so many of them may wait at a time (replicator.wire has these bounds).
What it says is checked in this order, and nothing of a group is touched before the last step:
protocol version (by the wire), name against certificate, group, the group's agents, that the group
is not damaged, the disks' sizes, the seat.

Every refusal is logged with the peer's address, counted by its reason, and told to the peer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

import structlog

from receiver.counted.witness import ClockWitness
from receiver.group.worker import GroupWorker
from receiver.session.admission import check_disks, check_hello
from receiver.session.session import Session
from replicator.base.errors import ReplicatorError
from replicator.wire.link import Link
from replicator.wire.messages import Hello

_log = structlog.get_logger(__name__)


class Listener:
    """`serve` is the session of replicator.wire's server."""

    def __init__(
        self, workers: Mapping[str, GroupWorker], agents_of: Mapping[str, Sequence[str]]
    ) -> None:
        self._workers = workers
        self._agents_of = agents_of
        self.refused: Counter[str] = Counter()
        self._witnesses: dict[Link, ClockWitness] = {}

    def witnesses(self) -> list[ClockWitness]:
        """What the agents that are connected have told of their clocks."""
        for link, witness in self._witnesses.items():
            witness.hear(link.peer_clocks)
        return list(self._witnesses.values())

    async def serve(self, link: Link) -> None:
        """Until the connection ends. Raises what the peer is to be told."""
        async with AsyncExitStack() as held:
            try:
                session, worker = await self._admit(link, held)
            except ReplicatorError as error:
                self.refused[error.name] += 1
                _log.warning(
                    "agent.refused",
                    peer=link.peer.address,
                    reason=error.name,
                    message=error.message,
                )
                raise
            self._witnesses[link] = ClockWitness(session.hello.agent)
            held.callback(self._witnesses.pop, link)
            await self._run(session, worker)

    async def _admit(self, link: Link, held: AsyncExitStack) -> tuple[Session, GroupWorker]:
        """The seat is taken when this returns, and left when `held` ends."""
        hello = await link.receive()
        assert isinstance(hello, Hello), "the wire lets nothing else come first"
        try:
            check_hello(hello, link.peer.names, self._agents_of)
        except ReplicatorError as error:
            if hello.group in self._workers:
                self._workers[hello.group].witness.refused(error)
            raise
        worker = self._workers[hello.group]
        try:
            worker.health.check_feedable()
            check_disks(
                hello, worker.replica.known.disk_sizes(), worker.replica.known.earlier_sizes
            )
            session = Session(link, hello, worker)
            held.callback(worker.changed.told)  # that the seat is free again
            await held.enter_async_context(worker.seat.taken_by(session))
        except ReplicatorError as error:
            worker.witness.refused(error)
            raise
        return session, worker

    async def _run(self, session: Session, worker: GroupWorker) -> None:
        log = _log.bind(group=session.hello.group, peer=session.peer)
        worker.figures.sessions += 1
        log.info("session.began", driver=session.hello.driver, version=session.hello.version)
        worker.witness.session_began()
        worker.changed.told()
        try:
            await session.run()
        except ReplicatorError as error:
            log.warning("session.failed", reason=error.name, message=error.message)
            raise
        finally:
            worker.witness.session_ended(session.end)
            log.info("session.ended", durable_lsn=worker.replica.known.welcome().durable_lsn)
