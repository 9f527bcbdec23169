# SPDX-License-Identifier: Apache-2.0
"""A session: one agent's connection to one group, from its accepted hello to its end.

Five tasks, joined by what they wait for and nothing else:

    read     link → arrivals                        waits while arrivals are full
    obey     arrivals → group, in order             frames in groups: append, fdatasync, ACK
    tell     the group has moved on → ACK           the applied LSN
    say      what this end can prove of the group   at once when it changes, and again and again
    digests  a disk is in a sync → digests → link   (digest_stream.py)

Order is kept where it matters: everything an agent says is obeyed in the order in which it came,
so a HOLD or an OPEN stands behind the frames before it. A frame is acknowledged after the
fdatasync that covers it, never before. What an agent says of its clocks and of its own side is
taken as it comes, past the frames: it is about now.

Ends
* The link ends (the agent left, died, broke the protocol): what had come whole is still made
  durable, because it may be the last that there ever is of the source.
* `fence`: the agent is back on a new connection. What was not begun is dropped (it comes again),
  the step under way is waited for, and only then is the new hello answered.
* The group refuses (a frame that does not continue, damage, no space): the error goes to the
  agent, the session ends.

Concurrency: one event loop; the group's blocking work is behind `GroupWorker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from receiver.group.feeding import on_wire
from receiver.group.status import word_for_agent
from receiver.group.worker import GroupWorker
from receiver.intake.arrivals import Arrivals
from receiver.session.digest_stream import DigestStream
from replicator.base.errors import OwnedError, ReplicatorError, UsageError
from replicator.states.words import TOLD_SECONDS
from replicator.wire.frames import Frame
from replicator.wire.limits import POINTS_PER_ACK
from replicator.wire.link import Link
from replicator.wire.messages import (
    Ack,
    AskLabel,
    DigestsWanted,
    Hello,
    Hold,
    LabelState,
    Message,
    Open,
    Ping,
    Point,
)
from replicator.wire.protocol import PeerClocks

_log = structlog.get_logger(__name__)


class Session:
    """Made for a hello that has been accepted. `run` once."""

    def __init__(self, link: Link, hello: Hello, worker: GroupWorker) -> None:
        self.hello = hello
        self._link = link
        self._worker = worker
        self._arrivals = Arrivals()
        self._digests = DigestStream(link, worker.feeding)
        self._acked = (0, 0)
        self._clocks: PeerClocks | None = None
        self._fenced = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def peer(self) -> str:
        """For people."""
        return f"{self.hello.agent} ({self._link.peer.address})"

    @property
    def instance(self) -> str:
        return self.hello.instance

    @property
    def agent(self) -> str:
        return self.hello.agent

    @property
    def end(self) -> ReplicatorError | None:
        """Why the link is over; None while it is not."""
        return None if self._link.fault is None else self._link.fault.error

    async def fence(self) -> None:
        """Ends this session; returns when nothing of it can reach the group any more."""
        self._link.close(
            OwnedError(f"agent {self.hello.agent!r} has opened a newer connection for this group")
        )
        self._fenced.set()
        await self._ended.wait()

    def close(self, reason: ReplicatorError) -> None:
        """Ends this session; what has come is still taken in, if the group can."""
        self._link.close(reason)

    async def run(self) -> None:
        """Until the session is over. Raises what the agent is to be told."""
        self._worker.replica.intake.source_clock.begin_session()
        welcome = self._worker.feeding.welcome()
        self._acked = (welcome.durable_lsn, welcome.applied_lsn)
        self._link.send(welcome)
        reading = asyncio.create_task(self._read())
        deciding = [
            asyncio.create_task(self._obey_all()),
            asyncio.create_task(self._tell()),
            asyncio.create_task(self._say()),
            asyncio.create_task(self._digests.run()),
            asyncio.create_task(self._wait_fenced()),
        ]
        try:
            ended, _ = await asyncio.wait(deciding, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in (reading, *deciding):
                task.cancel()
            await asyncio.gather(reading, *deciding, return_exceptions=True)
            await self._worker.feeding.quiet()
            self._ended.set()
        if reading.done() and not reading.cancelled():
            reading.result()  # a bug in it must not pass for a link that ended

    async def _wait_fenced(self) -> None:
        await self._fenced.wait()

    async def _read(self) -> None:
        try:
            while True:
                message = await self._link.receive()
                self._hear_clocks()
                if isinstance(message, Ping):
                    self._worker.witness.said(message)
                    continue
                self._arrivals.put(message)
                await self._arrivals.has_room()
        except ReplicatorError as error:
            _log.info(
                "session.link_ended",
                group=self.hello.group,
                peer=self.peer,
                reason=error.message,
            )
        finally:
            self._arrivals.end()

    def _hear_clocks(self) -> None:
        """Takes note of what the agent has told of its clocks, if that is new."""
        clocks = self._link.peer_clocks
        if clocks is not None and clocks != self._clocks:
            self._clocks = clocks
            self._worker.feeding.heard(clocks)

    async def _obey_all(self) -> None:
        while (arrived := await self._arrivals.take()) is not None:
            if isinstance(arrived, list):
                await self._take_in(arrived)
            else:
                await self._obey(arrived)

    async def _take_in(self, frames: Sequence[Frame]) -> None:
        taken = await self._worker.feeding.take_in(frames)
        for sync in taken.syncs:
            self._digests.begin(sync)
        self._acknowledge(taken.points)

    async def _obey(self, message: Message) -> None:
        match message:
            case Open():
                self._digests.forget_all()
                opened = await self._worker.feeding.open_stream(message)
                self._link.send(opened.message)
                for sync in opened.syncs:
                    self._digests.begin(sync)
                self._acknowledge(opened.points)
            case Hold():
                if await self._worker.feeding.hold(message.lsn, message.until_ns):
                    self._acknowledge([], until_ns=message.until_ns)
            case DigestsWanted():
                self._digests.wanted(message)
            case AskLabel():
                self._link.send(label_state(self._worker, message.label))
            case _:
                raise UsageError(f"{self.peer} said {type(message).__name__} to a receiver")

    async def _tell(self) -> None:
        while True:
            await self._worker.changed.wait()
            self._acknowledge_applied()

    async def _say(self) -> None:
        while True:
            ping = word_for_agent(self._worker)
            self._link.send(ping)
            with suppress(TimeoutError):
                async with asyncio.timeout(TOLD_SECONDS):
                    await self._turned(ping)

    async def _turned(self, before: Ping) -> None:
        """Returns when our own verdict is another state."""
        assert before.said is not None
        while (now := word_for_agent(self._worker).said) and now.state == before.said.state:
            await self._worker.changed.wait()

    def _acknowledge(self, points: Sequence[Point], *, until_ns: int = 0) -> None:
        """What has just been obeyed, with every point of it: one ACK, or several where there are
        very many points, or none if nothing is new."""
        facts = self._worker.replica.known.welcome()
        durable_lsn, applied_lsn = facts.durable_lsn, facts.applied_lsn
        if points or until_ns or self._acked != (durable_lsn, applied_lsn):
            self._send_ack(durable_lsn, applied_lsn, points, until_ns)

    def _acknowledge_applied(self) -> None:
        """The group has moved on. What is durable by now is not said before its points are."""
        durable_lsn, before = self._acked
        applied_lsn = min(self._worker.replica.known.welcome().applied_lsn, durable_lsn)
        if applied_lsn > before:
            self._send_ack(durable_lsn, applied_lsn, [])

    def _send_ack(
        self, durable_lsn: int, applied_lsn: int, points: Sequence[Point], until_ns: int = 0
    ) -> None:
        self._acked = (durable_lsn, applied_lsn)
        total = self._worker.replica.points.count
        for start in range(0, len(points) + 1, POINTS_PER_ACK):
            part = list(points[start : start + POINTS_PER_ACK])
            self._link.send(Ack(durable_lsn, applied_lsn, part, total, until_ns))


def label_state(worker: GroupWorker, label: str) -> LabelState:
    """Whose it is: that of a point, or of one that is durable and on its way to be one."""
    found = next((each for each in reversed(worker.ordered.points()) if each.label == label), None)
    point = None if found is None else on_wire(found)
    return LabelState(label, point is not None or worker.replica.known.is_label_taken(label), point)
