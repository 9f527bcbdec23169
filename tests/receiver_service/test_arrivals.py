# SPDX-License-Identifier: Apache-2.0
"""What gathers between link and inbox: order, grouping, bounds."""

from __future__ import annotations

import asyncio

from receiver.intake.arrivals import GROUP_BYTES, HIGH_BYTES, Arrivals
from replicator.wire.frames import Frame, FrameHeader
from replicator.wire.messages import Hold


def frame(start_lsn: int, data_bytes: int = 100) -> Frame:
    header = FrameHeader(start_lsn, start_lsn + 100, 0, 0, 100, data_bytes, 0, 0)
    return Frame(header, bytes(data_bytes))


async def test_neighbouring_frames_are_taken_together_and_order_is_kept() -> None:
    arrivals = Arrivals()
    first, second, third = frame(0), frame(100), frame(200)
    hold = Hold(200, 1)
    for message in (first, second, hold, third):
        arrivals.put(message)
    arrivals.end()
    assert await arrivals.take() == [first, second]
    assert await arrivals.take() == hold
    assert await arrivals.take() == [third]
    assert await arrivals.take() is None


async def test_a_group_is_bounded() -> None:
    arrivals = Arrivals()
    size = GROUP_BYTES // 4
    for number in range(6):
        arrivals.put(frame(number * 100, size))
    taken = await arrivals.take()
    assert isinstance(taken, list)
    assert len(taken) == 4


async def test_there_is_no_room_beyond_the_bound_until_something_is_taken() -> None:
    arrivals = Arrivals()
    arrivals.put(frame(0, HIGH_BYTES + 1))
    waiting = asyncio.create_task(arrivals.has_room())
    await asyncio.sleep(0)
    assert not waiting.done()
    await arrivals.take()
    await waiting


async def test_taking_waits_for_what_comes() -> None:
    arrivals = Arrivals()
    taking = asyncio.create_task(arrivals.take())
    await asyncio.sleep(0)
    assert not taking.done()
    arrivals.put(Hold(0, 1))
    assert await taking == Hold(0, 1)
