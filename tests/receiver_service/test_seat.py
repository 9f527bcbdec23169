# SPDX-License-Identifier: Apache-2.0
"""One source for a group: replacing one's own session, being refused another's, rollback."""

from __future__ import annotations

import asyncio

import pytest

from receiver.group.seat import Seat
from replicator.base.errors import FencedError, OwnedError, ReplicatorError, UnreachableError


class Sitter:
    """A session that lets go of the group only when it is allowed to."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self.peer = f"agent of {instance}"
        self.agent = "kvm1"
        self.asked_to_end = asyncio.Event()
        self.may_end = asyncio.Event()
        self.reason: ReplicatorError | None = None

    async def fence(self) -> None:
        self.asked_to_end.set()
        await self.may_end.wait()

    def close(self, reason: ReplicatorError) -> None:
        self.reason = reason
        self.may_end.set()


async def sit(seat: Seat, sitter: Sitter, seated: asyncio.Event) -> None:
    async with seat.taken_by(sitter):
        seated.set()
        await sitter.may_end.wait()


async def test_the_same_agent_waits_until_its_old_session_has_let_go() -> None:
    seat, old, new = Seat("web"), Sitter("a"), Sitter("a")
    old_seated, new_seated = asyncio.Event(), asyncio.Event()
    sitting = asyncio.create_task(sit(seat, old, old_seated))
    await old_seated.wait()
    coming = asyncio.create_task(sit(seat, new, new_seated))
    await old.asked_to_end.wait()
    await asyncio.sleep(0)
    assert not new_seated.is_set()
    old.may_end.set()
    await new_seated.wait()
    await sitting
    assert seat.sitter is new  # the old one's end did not take the seat from the new one
    assert seat.fenced == 1
    new.may_end.set()
    await coming
    assert seat.sitter is None


async def test_another_agent_is_refused_while_a_session_lives() -> None:
    seat, sitter = Seat("web"), Sitter("a")
    async with seat.taken_by(sitter):
        with pytest.raises(OwnedError, match="fed by agent of a"):
            async with seat.taken_by(Sitter("b")):
                pytest.fail("two sources at once")
        assert not sitter.asked_to_end.is_set()
    async with seat.taken_by(Sitter("b")):
        pass


async def test_a_rollback_is_refused_only_while_somebody_sits() -> None:
    seat = Seat("web")
    async with seat.taken_by(Sitter("a")):
        with pytest.raises(OwnedError, match="no rollback now"):
            async with seat.kept_empty_for("rollback"):
                pytest.fail("rolled back under a live source")
    async with seat.kept_empty_for("rollback"):
        with pytest.raises(UnreachableError, match="a rollback of group 'web' is under way"):
            async with seat.taken_by(Sitter("a")):
                pytest.fail("fed during a rollback")
        with pytest.raises(OwnedError):
            async with seat.kept_empty_for("rollback"):
                pytest.fail("two rollbacks at once")
    async with seat.taken_by(Sitter("a")):
        pass


async def test_a_detached_source_has_let_go_before_the_rollback_begins() -> None:
    seat, sitter, seated = Seat("web"), Sitter("a"), asyncio.Event()
    sitting = asyncio.create_task(sit(seat, sitter, seated))
    await seated.wait()
    async with seat.kept_empty_for("rollback", detach=True):
        assert isinstance(sitter.reason, FencedError)
        assert sitter.asked_to_end.is_set()
        await sitting
        with pytest.raises(UnreachableError):
            async with seat.taken_by(Sitter("a")):
                pytest.fail("fed during a rollback")
    assert seat.fenced == 1
