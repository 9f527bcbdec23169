# SPDX-License-Identifier: Apache-2.0
"""What an agent may rely on in a receiver: the same tests for the real one and for the fake one.

The agent's tests talk to a receiver in memory (tests/agent/fake_receiver.py). What that one says
and the real one does not would be tested against nothing; so whatever it is trusted with stands
here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import pytest

from replicator.base.errors import FencedError, ReplicatorError, UsageError
from replicator.wire.messages import (
    Ack,
    AskLabel,
    Hold,
    LabelState,
    Message,
    Open,
    Opened,
    Ping,
    Point,
    Said,
    Welcome,
)
from tests.agent.fake_receiver import FakeReceiver
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.source import Source

DISKS = {"vda": 1 << 20}
T = TypeVar("T", bound=Message)


class Session(Protocol):
    """One connection of an agent, greeted."""

    welcome: Welcome

    async def say(self, message: Message) -> None: ...

    async def expect(self, kind: type[T], wanted: Callable[[T], bool] = lambda _: True) -> T:
        """The next such message; raises what the receiver ends the session with."""
        ...


class FakeSession:
    """With the receiver in memory, which answers each message at once."""

    def __init__(self, receiver: FakeReceiver) -> None:
        self.welcome = receiver.welcome()
        self._receiver = receiver
        self._answers: deque[Message] = deque()
        self._end: ReplicatorError | None = None

    async def say(self, message: Message) -> None:
        try:
            self._answers += self._receiver.receive(message)
        except ReplicatorError as error:
            self._end = error

    async def expect(self, kind: type[T], wanted: Callable[[T], bool] = lambda _: True) -> T:
        while self._answers:
            message = self._answers.popleft()
            if isinstance(message, kind) and wanted(message):
                return message
        assert self._end is not None, f"no {kind.__name__} came"
        raise self._end


class Fake:
    def __init__(self) -> None:
        self._receiver = FakeReceiver()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        yield FakeSession(self._receiver)


class RealSession:
    def __init__(self, site: DrSite) -> None:
        self._site = site
        self.welcome: Welcome

    async def begin(self) -> None:
        self._agent = await self._site.agent()
        self.welcome = await self._agent.welcomed("web")

    async def end(self) -> None:
        await self._agent.close()

    async def say(self, message: Message) -> None:
        self._agent.link.send(message)
        await self._agent.link.drain()

    async def expect(self, kind: type[T], wanted: Callable[[T], bool] = lambda _: True) -> T:
        return await self._agent.expect(kind, wanted)


class Real:
    def __init__(self, site: DrSite) -> None:
        self._site = site

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        one = RealSession(self._site)
        await one.begin()
        try:
            yield one
        finally:
            await one.end()


@pytest.fixture(params=["fake", "real"])
async def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fake | Real]:
    if request.param == "fake":
        yield Fake()
        return
    site = DrSite(tmp_path)
    async with site.running():
        yield Real(site)


def begun(*labels: str | None, ordinal: int = 1, first_lsn: int = 0) -> Source:
    """A stream whose sync is over, with a cut for each label."""
    source = Source(DISKS, ordinal=ordinal, first_lsn=first_lsn)
    source.start_from_zero()
    for number, label in enumerate(labels):
        source.write("vda", 4096 * number, bytes([number + 1]) * 4096)
        source.cut(label)
    return source


def opening(source: Source, lsn: int | None = None, points_after: int | None = None) -> Open:
    start = source.first_lsn if lsn is None else lsn
    return Open(str(source.stream), source.ordinal, start, source.chain_at(start), points_after)


async def open_stream(session: Session, message: Open) -> Opened:
    await session.say(message)
    return await session.expect(Opened)


async def ship(session: Session, source: Source, start_lsn: int) -> list[Point]:
    """All that is left; the points of it. An ACK that covers an LSN came with all up to there."""
    for frame in source.frames(start_lsn, step=1):
        await session.say(frame)
    points: list[Point] = []
    while True:
        ack = await session.expect(Ack)
        points += ack.points
        covered = [cut.end_lsn for cut in source.cuts if start_lsn < cut.end_lsn <= ack.durable_lsn]
        assert [point.lsn for point in points][-len(covered) :] == covered[-len(points) :]
        assert len(points) >= len(covered)
        if ack.durable_lsn >= source.end_lsn:
            return points


async def test_a_new_receiver_holds_nothing(receiver: Fake | Real) -> None:
    async with receiver.session() as session:
        assert session.welcome.stream is None
        assert (session.welcome.ordinal, session.welcome.closed_ordinal) == (0, 0)
        assert session.welcome.newest_point is None


async def test_points_are_told_with_the_stream_that_they_were_cut_in(
    receiver: Fake | Real,
) -> None:
    source = begun(None, "x", None)
    async with receiver.session() as session:
        assert (await open_stream(session, opening(source))).resent == 0
        points = await ship(session, source, 0)
        assert [point.lsn for point in points] == [cut.end_lsn for cut in source.cuts]
        assert [point.label for point in points] == [None, "x", None]
        assert {point.ordinal for point in points} == {1}
    async with receiver.session() as session:
        assert session.welcome.stream == str(source.stream)
        assert session.welcome.durable_lsn == source.end_lsn
        assert session.welcome.chain == source.chain_at(source.end_lsn)
        assert session.welcome.newest_point is not None
        assert session.welcome.newest_point.ordinal == 1


async def test_a_hold_is_acknowledged(receiver: Fake | Real) -> None:
    source = begun(None)
    async with receiver.session() as session:
        await open_stream(session, opening(source))
        await ship(session, source, 0)
        until_ns = source.cuts[-1].time_ns + 5_000_000_000
        await session.say(Hold(source.end_lsn, until_ns))
        assert await session.expect(Ack, lambda ack: ack.until_ns == until_ns)


async def test_a_label_is_known_with_its_point(receiver: Fake | Real) -> None:
    source = begun("x", None)
    async with receiver.session() as session:
        await open_stream(session, opening(source))
        points = await ship(session, source, 0)
        await session.say(AskLabel("x"))
        state = await session.expect(LabelState)
        assert (state.label, state.taken) == ("x", True)
        assert state.point is not None
        assert (state.point.sequence, state.point.lsn) == (points[0].sequence, points[0].lsn)
        await session.say(AskLabel("y"))
        assert await session.expect(LabelState) == LabelState("y", taken=False)


async def test_a_label_that_is_taken_by_then_is_changed_at_the_point(
    receiver: Fake | Real,
) -> None:
    source = begun("x", "x")
    async with receiver.session() as session:
        await open_stream(session, opening(source))
        points = await ship(session, source, 0)
        assert [point.label for point in points] == ["x", "x~2"]


async def test_what_is_resumed_is_told_again_as_far_as_is_asked(receiver: Fake | Real) -> None:
    """Also where it is more than are told unasked."""
    source = begun(*[None] * 70)
    async with receiver.session() as session:
        await open_stream(session, opening(source))
        await ship(session, source, 0)
    for points_after, expected in (
        (None, source.cuts[-64:]),
        (0, source.cuts),
        (source.cuts[68].end_lsn - 1, source.cuts[68:]),
        (source.end_lsn, []),
    ):
        async with receiver.session() as session:
            opened = await open_stream(session, opening(source, source.end_lsn, points_after))
            assert opened.resent == len(expected)
            told: list[Point] = []
            while len(told) < opened.resent:
                told += (await session.expect(Ack)).points
            assert [point.lsn for point in told] == [cut.end_lsn for cut in expected]


async def test_a_later_stream_ends_the_one_before(receiver: Fake | Real) -> None:
    first, second = begun("x"), begun("y", ordinal=2, first_lsn=1 << 40)
    async with receiver.session() as session:
        await open_stream(session, opening(first))
        await ship(session, first, 0)
        assert (await open_stream(session, opening(second))).resent == 0
        points = await ship(session, second, second.first_lsn)
        assert [(point.label, point.ordinal) for point in points] == [("y", 2)]
    async with receiver.session() as session:
        await session.say(opening(first, first.end_lsn))
        with pytest.raises(FencedError):
            await session.expect(Opened)


async def test_a_frame_that_does_not_continue_ends_the_session(receiver: Fake | Real) -> None:
    source = begun(None, None)
    frames = source.frames(0, step=1)
    async with receiver.session() as session:
        await open_stream(session, opening(source))
        await session.say(frames[0])
        await session.say(frames[2])
        with pytest.raises(UsageError):
            await session.expect(Ack, lambda ack: ack.durable_lsn > frames[0].header.end_lsn)


async def test_an_agent_may_say_what_it_can_prove_at_any_time(receiver: Fake | Real) -> None:
    source = begun(None)
    async with receiver.session() as session:
        await session.say(Ping(said=Said("attaching", "why", "what to do")))
        await open_stream(session, opening(source))
        await session.say(Ping(said=Said("a-word-from-tomorrow")))
        assert len(await ship(session, source, 0)) == 1
