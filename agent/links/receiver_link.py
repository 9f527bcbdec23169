# SPDX-License-Identifier: Apache-2.0
"""One group's connection to the receiver: connects, greets, ships, comes back.

The shell around the shipper. All its calls are made from the one task in `run`, the slow ones in a
thread, so the shipper needs no lock. A reader task only gathers what the receiver says; another one
says what this end can prove of the group, again and again, ahead of all frames and between them.

When the connection ends, for whatever reason, the next attempt begins at the receiver's WELCOME:
nothing is remembered. Two paces: what may be over soon (unreachable) is tried again quickly; what
needs a person (a certificate or name refused, another version, fenced, owned by another agent)
is tried again slowly, for ever, and `problem` says what it is. The agent never exits over it: the
guest is captured meanwhile, and the other groups are served.

`refused` is set while the receiver may not be fed at all (fenced, or rolled back and not accepted).
`last_word` is what a receiver said when it ended a session or would not have one: an attempt with
any other outcome forgets it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from agent.retrying.pace import Pace
from agent.shipping.marks import Marks
from agent.shipping.progress import Renew
from agent.shipping.resume import Fenced, Paused, Plan
from agent.shipping.shipper import Shipper
from replicator.base.errors import FencedError, ReplicatorError, UnreachableError
from replicator.base.trouble import words_of
from replicator.control.splitter import SplitterGroupStatus
from replicator.states.words import TOLD_SECONDS, State, Trouble, Verdict
from replicator.wire.limits import GREETING_SECONDS
from replicator.wire.link import Connector, Link
from replicator.wire.messages import (
    Ack,
    AskLabel,
    Hello,
    LabelState,
    Message,
    Open,
    Opened,
    Ping,
    Welcome,
)
from replicator.wire.protocol import Whose

log = structlog.get_logger("replicator.agent.receiver")

SOON = Pace(first_seconds=0.2, most_seconds=5.0)
LATER = Pace(first_seconds=2.0, most_seconds=30.0)
LABEL_SECONDS = 5.0
PRODUCE_BYTES = 1 << 20
T = TypeVar("T")


class RefusedError(ReplicatorError):
    """The receiver was rolled back; a person has to say that this source may feed it again."""

    name = "paused"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the link asks of the group around it. All are called on the event loop.

    `hello(generation_seen)`: the greeting. `patient()`: whether a sync may wait for digests.
    `marks`: what waits for points. `session(welcome)`: one has begun. `renew(what)`: the
    live stream cannot be shipped; said again and again while it lives. `changed()`: something
    that a status shows. `ping()`: what this end says of itself. `heard(ping)`: what the other says.
    """

    hello: Callable[[int], Hello]
    patient: Callable[[], bool]
    marks: Marks
    session: Callable[[Welcome], None]
    renew: Callable[[Renew], None]
    changed: Callable[[], None]
    ping: Callable[[], Ping]
    heard: Callable[[Ping], None]


class ReceiverLink:
    """See the head of this file."""

    def __init__(
        self, group: str, connector: Connector, shipper: Shipper, pool: Executor, wishes: Wishes
    ) -> None:
        self.trouble = Trouble("not connected to the receiver yet")
        """Why there is no session; empty while there is one."""
        self.refused: Verdict | None = None
        self.last_word: ReplicatorError | None = None
        self.connected = False
        self.peer = ""
        self.reconnects: Counter[str] = Counter()
        self._group = group
        self._connector = connector
        self._shipper = shipper
        self._pool = pool
        self._wishes = wishes
        self._status: SplitterGroupStatus | None = None
        self._inbox: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._retry = asyncio.Event()
        self._accept_generation = False
        self._link: Link | None = None
        self._labels: dict[str, list[asyncio.Future[LabelState]]] = {}

    # -- what the group does with it

    def publish(self, status: SplitterGroupStatus | None) -> None:
        """The splitter's newest word on this group."""
        self._status = status
        if self._link is not None:
            self._tell_captured(self._link)
        self._wake.set()

    def say_soon(self) -> None:
        """What `ping` says has changed."""
        self._news.set()

    def readmit(self) -> None:
        """A person orders a resync: a rolled back receiver may be fed again. Tries at once."""
        self._accept_generation = True
        self._retry.set()
        self._wake.set()

    async def ask_label(self, label: str) -> LabelState | None:
        """What the receiver says about a label; None while it cannot be asked."""
        link = self._link
        if link is None:
            return None
        answer: asyncio.Future[LabelState] = asyncio.get_running_loop().create_future()
        self._labels.setdefault(label, []).append(answer)
        link.send(AskLabel(label))
        try:
            async with asyncio.timeout(LABEL_SECONDS):
                return await answer
        except TimeoutError:
            return None
        finally:
            waiting = self._labels.get(label, [])
            if answer in waiting:
                waiting.remove(answer)

    async def run(self) -> None:
        """Runs until it is cancelled."""
        soon, later = SOON.fresh(), LATER.fresh()
        while True:
            try:
                await self._connect_and_ship(soon, later)
            except ReplicatorError as error:
                self._ended(error)
                pace = soon if isinstance(error, UnreachableError) else later
            except OSError as error:  # of the spool or the state directory
                self._ended(words_of(error))
                pace = later
            await self._wait(pace.next_seconds())

    # -- a session

    async def _connect_and_ship(self, soon: Pace, later: Pace) -> None:
        try:
            link = await self._connector.connect()
        except ReplicatorError:
            self.last_word = None
            raise
        try:
            welcome = await self._greet(link)
            await self._begin(welcome)
            soon.succeeded()
            later.succeeded()
            self._now_connected(link, welcome)
            await self._ship(link)
        except ReplicatorError as error:
            fault = link.fault
            self.last_word = error if fault is not None and fault.whose is Whose.SAID else None
            link.close(error if fault is None else None)
            raise
        finally:
            link.close()
            self._link = None
            self.connected = False
            self._shipper.disconnected()
            self._wishes.marks.session_ended()
            await link.wait_closed()

    async def _greet(self, link: Link) -> Welcome:
        link.send(self._wishes.hello(self._shipper.generation_seen))
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                welcome = await link.receive()
        except TimeoutError:
            raise UnreachableError(
                f"{link.peer.address} did not welcome us within {GREETING_SECONDS:.0f} s"
            ) from None
        assert isinstance(welcome, Welcome), "the protocol admits nothing else here"
        return welcome

    async def _begin(self, welcome: Welcome) -> None:
        if self._accept_generation:
            self._accept_generation = False
            await self._in_thread(self._shipper.accept_generation)
        self._shipper.publish(self._status)
        decided = await self._in_thread(partial(self._shipper.welcome, welcome))
        self.refused = _refusal(decided, self._group)
        if self.refused is not None:
            kind = FencedError if isinstance(decided, Fenced) else RefusedError
            raise kind(self.refused.reason, hint=self.refused.remedy)

    def _now_connected(self, link: Link, welcome: Welcome) -> None:
        self._link = link
        self._tell_captured(link)
        self.connected = True
        self.trouble = Trouble("")
        self.last_word = None
        self.peer = welcome.receiver
        log.info(
            "connected",
            group=self._group,
            receiver=welcome.receiver,
            durable_lsn=welcome.durable_lsn,
        )
        self._wishes.session(welcome)
        self._wishes.changed()

    def _tell_captured(self, link: Link) -> None:
        """The splitter told this process of it, so it is captured in this boot."""
        if self._status is not None:
            link.tell_captured(self._status.stream)

    async def _ship(self, link: Link) -> None:
        """Until the session ends: raises why."""
        self._inbox.clear()
        reader = asyncio.create_task(self._read(link))
        reader.add_done_callback(lambda _: self._wake.set())
        telling = asyncio.create_task(self._tell(link))
        telling.add_done_callback(lambda _: self._wake.set())
        try:
            while True:
                self._wake.clear()
                self._take_inbox()
                self._shipper.publish(self._status)
                produce = partial(
                    self._shipper.produce, PRODUCE_BYTES, patient=self._wishes.patient()
                )
                messages = await self._in_thread(produce)
                for message in messages:
                    link.send(self._asking(message))
                await link.drain()
                if self._shipper.dead_end is not None:
                    ordinal, end_lsn = self._shipper.dead_end
                    self._wishes.marks.stream_over(ordinal, end_lsn, "it was lost with its stream")
                if self._shipper.renew is not None:
                    self._wishes.renew(self._shipper.renew)
                if reader.done():
                    self._take_inbox()
                    reader.result()
                if telling.done():
                    telling.result()
                if not messages:
                    await self._wake.wait()
        finally:
            for task in (reader, telling):
                task.cancel()
            await asyncio.gather(reader, telling, return_exceptions=True)

    async def _tell(self, link: Link) -> None:
        """At once, whenever it has changed, and again and again."""
        while True:
            self._news.clear()
            link.send(self._wishes.ping())
            with suppress(TimeoutError):
                async with asyncio.timeout(TOLD_SECONDS):
                    await self._news.wait()

    async def _read(self, link: Link) -> None:
        while True:
            self._inbox.append(await link.receive())
            self._wake.set()

    def _take_inbox(self) -> None:
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, LabelState):
                for answer in self._labels.pop(message.label, []):
                    if not answer.done():
                        answer.set_result(message)
                continue
            if isinstance(message, Ping):
                self._wishes.heard(message)
                continue
            self._shipper.receive(message)
            if isinstance(message, Opened):
                self._wishes.marks.opened(self._shipper.above_ordinal, message)
            if isinstance(message, Ack):
                self._wishes.marks.acknowledged(message)
                self._wishes.changed()

    def _asking(self, message: Message) -> Message:
        """An OPEN asks for the points that marks still wait for."""
        if not isinstance(message, Open):
            return message
        known_lsn = self._wishes.marks.known_lsn(message.ordinal)
        return msgspec.structs.replace(message, points_after=known_lsn)

    # -- between sessions

    def _ended(self, error: ReplicatorError) -> None:
        trouble = Trouble(error.message, error.hint)
        if trouble != self.trouble:
            log.warning(
                "not connected",
                group=self._group,
                error=error.name,
                reason=error.message,
                hint=error.hint,
            )
        self.trouble = trouble
        self.reconnects[error.name] += 1
        self._wishes.changed()

    async def _wait(self, seconds: float) -> None:
        """Sleeps, unless a person wants it now."""
        try:
            async with asyncio.timeout(seconds):
                await self._retry.wait()
        except TimeoutError:
            return
        self._retry.clear()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """The shipper is never left to a thread that nobody waits for."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()
            raise


def _refusal(decided: Plan | Fenced | Paused, group: str) -> Verdict | None:
    """Why the receiver may not be fed; None where it may."""
    if isinstance(decided, Fenced):
        return Verdict(
            State.PAUSED,
            f"the receiver is at generation {decided.found}, generation {decided.seen} was seen"
            " before: it has been set back",
            "bring the newer receiver back; or stop the agent, remove"
            f" groups/{group}.json from its state_dir, and start it: it takes this one then",
        )
    if isinstance(decided, Paused):
        return Verdict(
            State.ROLLED_BACK,
            f"the receiver was rolled back, or a loss was accepted there (generation"
            f" {decided.found})",
            f"replicator resync {group} makes the replica equal to this source again",
        )
    return None
