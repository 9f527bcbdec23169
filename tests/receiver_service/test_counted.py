# SPDX-License-Identifier: Apache-2.0
"""The counted clock of a receiver that runs: what agents tell, what is shown, what is ordered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from receiver.audit.log import read_entries
from replicator.base.clock import NS_PER_S
from replicator.base.errors import UsageError
from replicator.base.storage import SystemStorage
from replicator.control.orders import ACCEPT_CLOCK, POINTS, STATUS
from replicator.control.requests import AcceptClockRequest
from tests.receiver.machine import FakeMachine
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.test_orders import feed, leave, order, story

WEEK_NS = 7 * 86_400 * NS_PER_S


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(1500):
        if is_so():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it has not come to that in 30 s")


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


async def test_the_clock_is_kept_shown_and_goes_on_after_a_restart(site: DrSite) -> None:
    machine = FakeMachine()
    async with site.running(machine=machine):
        good = (await order(site.control.order, STATUS)).clock
        assert good is not None
        assert (good.state, good.behind_seconds, good.why) == ("good", 0, "")
        machine.step_ns = WEEK_NS
        stepped = (await order(site.control.order, STATUS)).clock
        assert stepped is not None
        assert (stepped.state, stepped.behind_seconds) == ("stepped", 604_800)
        assert stepped.counted == good.counted
        assert "replicator clock accept" in stepped.why
    assert (site.data_dir / "clock.json").exists()
    async with site.running(machine=machine):
        again = (await order(site.control.order, STATUS)).clock
        assert again == stepped


async def test_accepting_is_planned_audited_and_takes_effect_at_once(site: DrSite) -> None:
    machine = FakeMachine()
    async with site.running(machine=machine) as receiver:
        agent = await feed(site, story())
        await leave(agent, receiver)
        machine.pass_by(60 * NS_PER_S)
        machine.step_ns = WEEK_NS
        plan = await order(
            site.control.order, ACCEPT_CLOCK, request=AcceptClockRequest(reason="", dry_run=True)
        )
        assert (plan.forward_seconds, plan.lock_forward_seconds) == (604_800, 604_800)
        assert plan.points == {"web": 7}
        assert not plan.takes_reason
        assert plan.clock.state == "stepped"
        assert len(await order(site.control.order, POINTS, "web")) == 9
        worker = receiver.workers["web"]
        done = await order(
            site.control.order,
            ACCEPT_CLOCK,
            request=AcceptClockRequest(reason="the lab was off", dry_run=False),
        )
        assert done.clock.state == "good"
        await until(lambda: worker.figures.points_dropped == 7)
        labels = [point.label for point in await order(site.control.order, POINTS, "web")]
        assert labels == ["good", None]
        again = await order(
            site.control.order, ACCEPT_CLOCK, request=AcceptClockRequest(reason="", dry_run=False)
        )
        assert (again.forward_seconds, again.points) == (0, {})
    entries = list(read_entries(SystemStorage(), site.data_dir / "audit"))
    told = [entry for entry in entries if entry.order == "clock accept"]
    assert [entry.outcome for entry in told] == ["started", "done"] * 3
    assert "the lab was off" in told[2].argument


async def test_where_a_lock_ends_sooner_it_takes_a_reason(site: DrSite) -> None:
    config = site.config_file.read_text()
    site.config_file.write_text(config.replace("[history]", '[history]\nmin_lock = "12h"'))
    machine = FakeMachine()
    async with site.running(machine=machine) as receiver:
        agent = await feed(site, story())
        await leave(agent, receiver)
        machine.pass_by(60 * NS_PER_S)
        worker = receiver.workers["web"]
        worker.wake()
        await worker.changed.until(lambda: worker.replica.keeping.lock_ns > 0)
        machine.step_ns = WEEK_NS
        assert (
            await order(
                site.control.order,
                ACCEPT_CLOCK,
                request=AcceptClockRequest(reason="", dry_run=True),
            )
        ).takes_reason
        with pytest.raises(UsageError, match="takes a reason"):
            await order(
                site.control.order,
                ACCEPT_CLOCK,
                request=AcceptClockRequest(reason="", dry_run=False),
            )
        clock = (await order(site.control.order, STATUS)).clock
        assert clock is not None
        assert clock.state == "stepped"
        done = await order(
            site.control.order,
            ACCEPT_CLOCK,
            request=AcceptClockRequest(reason="it was off for a week", dry_run=False),
        )
        assert done.clock.state == "good"


async def test_what_agents_tell_confirms_the_time_of_the_machine(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ten minutes are shorter here, and so two tellings do."""
    monkeypatch.setattr("receiver.counted.witness.STEADY_NS", 4 * NS_PER_S)
    machine = FakeMachine()
    async with site.running(machine=machine) as receiver:
        agent = await site.agent()
        await agent.welcomed("web")
        machine.true_ns = time.time_ns()  # as the agent's does
        clock = (await order(site.control.order, STATUS)).clock
        assert clock is not None
        assert clock.state == "stepped"
        for _ in range(150):
            receiver.tend()
            await receiver.clock_errand.ended()
            clock = (await order(site.control.order, STATUS)).clock
            assert clock is not None
            if clock.behind_seconds == 0:
                break
            await asyncio.sleep(0.2)
        assert "locks do not go by" in clock.why
        await agent.close()
