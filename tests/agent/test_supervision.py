# SPDX-License-Identifier: Apache-2.0
"""A task that dies is named, begun anew, and called well when it has proven itself."""

from __future__ import annotations

import asyncio

import pytest

import agent.retrying.supervision
from agent.retrying.pace import Pace
from agent.retrying.supervision import Supervision
from replicator.base.errors import DamageError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.retrying.supervision, "AGAIN", Pace(0.01, 0.05))


class Work:
    """Fails as often as it is told, then runs until it is let go."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.begun = 0
        self.runs = asyncio.Event()
        self.end = asyncio.Event()

    async def run(self) -> None:
        self.begun += 1
        if self.errors:
            raise self.errors.pop(0)
        self.runs.set()
        await self.end.wait()


async def test_whatever_it_dies_of_is_named_and_it_is_begun_anew() -> None:
    changed: list[str] = []
    work = Work(KeyError("lost"), OSError(5, "Input/output error", "/s/g.json"))
    supervision = Supervision("g", lambda: changed.append(supervision.problem))
    task = asyncio.create_task(supervision.keep("shipping", work.run))
    async with asyncio.timeout(10):
        await work.runs.wait()
    assert work.begun == 3
    assert "unexpected KeyError: 'lost'" in changed[0]
    assert changed[1].startswith("shipping: /s/g.json: Input/output error")
    assert supervision.problem == changed[1]  # not proven yet
    work.end.set()
    await task
    assert supervision.problem == ""


async def test_a_task_that_goes_on_for_long_is_well_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.retrying.supervision, "PROVEN_SECONDS", 0.05)
    news = asyncio.Event()
    supervision = Supervision("g", news.set)
    work = Work(DamageError("spool/1.seg at 17"))
    task = asyncio.create_task(supervision.keep("shipping", work.run))
    async with asyncio.timeout(10):
        for expected in ("shipping: spool/1.seg at 17", ""):
            await news.wait()
            news.clear()
            assert supervision.problem == expected
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert supervision.problem == ""  # a cancellation is nobody's trouble


async def test_two_troubles_are_both_said_and_end_by_themselves() -> None:
    supervision = Supervision("g")
    supervision.failed("status", KeyError("x"))
    supervision.failed("driver", DamageError("y"))
    assert "status: unexpected KeyError" in supervision.problem
    assert "driver: y" in supervision.problem
    supervision.well("status")
    assert supervision.problem == "driver: y"


async def test_an_errand_that_dies_is_named() -> None:
    supervision = Supervision("g")

    async def dies() -> None:
        raise AssertionError("no")

    task = asyncio.create_task(dies())
    task.add_done_callback(lambda task: supervision.ended("errand", task))
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0)
    assert "errand: unexpected AssertionError: no" in supervision.problem
