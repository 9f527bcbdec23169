# SPDX-License-Identifier: Apache-2.0
"""How a source comes to its end, with a real guest: a clean one is a point, an unwatched one none.

`REPLICATOR_ENDS=50` runs so many clean ends of each kind, and says how many had a final cut.
"""

from __future__ import annotations

import asyncio
import os

import pytest

from replicator.base.clock import rfc3339
from replicator.control.orders import POINTS
from tests.libvirt.house import GUEST, End, House, house

ENDS = int(os.environ.get("REPLICATOR_ENDS", "1"))

pytestmark = pytest.mark.timeout(600 * ENDS)


async def clean_end(house: House, kind: End) -> str:
    """Why it was none; empty if it ended with a point that equals the source."""
    await house.boot()
    await house.until("protected")
    await house.shut_off(kind)
    status = await house.said(lambda group: group.state in ("closed", "lost"))
    if status.ended != "final cut":
        return f"{kind}: {status.state}: {status.reason}"
    await house.until("idle", "shut off")
    await house.applied(status.end_lsn)
    differing = house.differing()
    return f"{kind}: blocks that differ: {differing}" if differing else ""


@pytest.mark.parametrize("persistent", [True, False])
async def test_a_clean_end_is_a_final_cut_that_equals_the_source(*, persistent: bool) -> None:
    failed = []
    kinds: tuple[End, ...] = ("shutdown", "poweroff", "destroy")
    async with house(persistent=persistent) as it:
        for number in range(ENDS):
            for kind in kinds:
                if why := await clean_end(it, kind):
                    failed.append(why)
                print(f"{number + 1} of {ENDS}, {kind}: {why or 'final cut'}", flush=True)
    assert not failed, f"{len(failed)} of {ENDS * len(kinds)}: {failed}"


async def test_an_end_that_nobody_watched_is_no_point_and_no_loss() -> None:
    """The agent is away over the end of one run, and a whole second run."""
    async with house() as it:
        await it.boot()
        await it.until("protected")
        await asyncio.to_thread(it.site.stop, "agent")
        await it.shut_off("poweroff")
        before = await it.said(lambda group: group.state == "suspended")
        console = await it.boot()
        await console.wait_confirmed(console.confirmed + 20, 60)
        await it.shut_off("poweroff")
        it.site.start("agent")
        status = await it.said(lambda group: group.state in ("closed", "lost"))
        assert (status.state, status.ended) == ("closed", "unwatched")
        await it.until("idle", "the end was not watched")
        assert status.last_cut_time_ns == before.last_cut_time_ns
        points = await asyncio.to_thread(it.site.receiver.order, POINTS, GUEST)
        assert points[-1].time == rfc3339(before.last_cut_time_ns)
        assert it.differing(), "the second run is not in the replica"
