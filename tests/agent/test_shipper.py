# SPDX-License-Identifier: Apache-2.0
"""The shipper between a real spool and a distrustful receiver: order, resume, syncs, freeing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agent.shipping.resume import Fenced, Paused, Plan
from agent.shipping.shipper import FREE_STEP_BYTES
from journal.record import RecordType
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.spool import StreamName, list_segments, list_streams
from replicator.base.errors import UsageError
from replicator.wire.messages import Ack, Hold, Open, Opened
from tests.agent.world import World

KIB = 1024
BLOCK = 64 * KIB


def make(path: Path, sizes: tuple[int, ...] = (4 * BLOCK, 2 * BLOCK)) -> World:
    return World(path, [(f"d{number}", size) for number, size in enumerate(sizes)])


def busy(world: World, rng: random.Random, writes: int = 20) -> None:
    source = world.source
    for _ in range(writes):
        disk = rng.randrange(len(world.disks))
        size = world.disks[disk][1]
        offset = rng.randrange(0, size, 512)
        length = min(rng.choice([512, 4096, BLOCK]), size - offset)
        if rng.random() < 0.2:
            source.zero(disk, offset, length)
        else:
            source.write(disk, offset, rng.randbytes(length))


def test_what_is_cut_becomes_a_point(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    rng = random.Random(1)
    for number in range(5):
        busy(world, rng)
        world.source.cut(f"label {number}")
    world.pump()
    assert len(world.receiver.points) == 6
    world.check_points()
    progress = world.shipper.progress
    assert progress.durable_lsn == world.source.next_lsn
    assert progress.in_flight_bytes == 0
    assert progress.points == 6
    assert progress.newest_point == world.receiver.points[-1]
    assert world.shipper.counters.log_bytes == world.source.next_lsn


def test_a_session_resumes_at_the_receivers_durable_lsn_and_sends_nothing_twice(
    tmp_path: Path,
) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    rng = random.Random(2)
    busy(world, rng, 60)
    world.source.cut()
    world.connect()
    world.produce(64 * KIB)
    world.deliver_up()  # OPEN
    world.deliver_down()
    world.produce(200 * KIB)
    for _ in range(2):
        world.deliver_up()
    held = world.receiver.durable_lsn
    assert 0 < held < world.source.next_lsn
    world.restart_agent()
    world.pump()
    assert [open_.start_lsn for open_ in world.receiver.opens] == [0, held]
    starts = [frame.header.start_lsn for frame in world.receiver.frames]
    assert starts == sorted(set(starts))
    world.check_points()


def test_the_window_bounds_what_is_in_flight(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    rng = random.Random(3)
    world.connect()
    world.produce()
    world.deliver_up()
    world.deliver_down()
    for _ in range(60):
        world.source.write(0, 0, rng.randbytes(BLOCK))
    while world.produce():
        pass
    limit = world.window_bytes + 2 * world.frame_bytes
    assert world.window_bytes <= world.shipper.progress.in_flight_bytes < limit
    world.pump()
    assert world.shipper.progress.in_flight_bytes == 0


def test_the_spool_is_freed_below_what_is_durable_and_no_further(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    rng = random.Random(4)
    world.connect()
    for _ in range(60):
        world.source.write(0, 0, rng.randbytes(BLOCK))
    assert world.source.stream is not None
    name = StreamName(1, world.source.stream)
    before = list_segments(world.storage, world.directories, name)
    world.produce()
    world.deliver_up()
    world.deliver_down()
    while world.produce():
        while world.deliver_up():
            pass  # the receiver has it, its ACKs are on their way
    assert list_segments(world.storage, world.directories, name) == before
    world.pump()
    world.source.cut()
    world.pump()
    left = list_segments(world.storage, world.directories, name)
    assert len(left) <= 2 < len(before)
    assert left[0].first_lsn <= world.source.next_lsn


def test_what_was_sent_and_is_not_durable_stays_in_the_spool(tmp_path: Path) -> None:
    """However much of it is durable: the rest may have to be sent again."""
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.source.cut()
    world.pump()
    for number in range(40):
        world.source.write(0, 0, bytes([number]) * BLOCK)
    world.source.cut("sent")
    while world.produce():
        pass  # nothing of it is received
    for _ in range(8):  # more than a segment, and than FREE_STEP_BYTES
        world.deliver_up()
    while world.deliver_down():
        pass
    world.produce()  # frees
    durable = world.shipper.progress.durable_lsn
    assert durable is not None
    assert FREE_STEP_BYTES < durable < world.source.next_lsn - FREE_STEP_BYTES
    assert world.source.stream is not None
    left = list_segments(world.storage, world.directories, StreamName(1, world.source.stream))
    assert left[0].first_lsn <= durable
    world.restart_agent()
    world.pump()
    assert world.receiver.points[-1].label == "sent"
    world.check_points()


def test_what_is_in_flight_of_the_stream_before_does_not_fill_the_next_ones_window(
    tmp_path: Path,
) -> None:
    """Its ACKs are not awaited any more: they speak of LSNs of another stream."""
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.pump()
    for number in range(12):
        world.source.write(0, 0, bytes([number]) * BLOCK)
    world.source.cut("the rest")
    while world.produce():
        pass
    assert world.shipper.progress.in_flight_bytes > 0
    world.source.open_stream()
    world.source.sync_begin(0)
    while world.produce():
        pass  # the OPEN of the next stream is behind the rest of this one
    acks = world.receiver_takes_all()
    opened = [message for message in acks if isinstance(message, Opened)]
    assert len(opened) == 1
    world.shipper.receive(opened[0])
    assert world.shipper.progress.in_flight_bytes == 0


def test_a_stream_above_the_splitters_last_word_is_not_left_as_dead(tmp_path: Path) -> None:
    """The word may be older than the stream: it goes on when the next one comes."""
    world = make(tmp_path)
    world.source.begin_from_zero()
    older = world.source.status()
    world.source.open_stream()
    for disk in (0, 1):
        world.source.sync_begin(disk, from_zero=True)
        world.source.sync_end(disk)
    world.source.cut("early")
    world.pump()
    assert world.receiver.points[-1].label == "early"
    world.splitter_up = False
    world.pump()  # it is read to where it verifies, as of a dead one
    world.shipper.publish(older)
    assert world.shipper.produce() == []
    world.splitter_up = True
    world.source.cut("late")
    world.pump()
    assert [open_.ordinal for open_ in world.receiver.opens] == [1, 2]
    assert world.shipper.renew is None
    assert world.receiver.points[-1].label == "late"


def test_an_idle_group_holds(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.pump()
    assert world.receiver.holds == []
    world.source.idle()
    world.pump()
    world.source.idle()
    world.pump()
    assert [hold.lsn for hold in world.receiver.holds] == [world.source.next_lsn] * 2
    assert world.shipper.progress.held_until_ns == world.source.time_ns


def test_a_hold_waits_for_the_log_that_it_speaks_of(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.source.idle()
    world.connect()
    world.produce()
    assert [type(message) for message in world.up] == [Open]
    world.deliver_up()
    world.deliver_down()
    world.produce()
    assert isinstance(world.up[-1], Hold)
    assert world.shipper.progress.held_until_ns < world.source.held_until_ns
    world.pump()
    assert world.shipper.progress.held_until_ns == world.source.held_until_ns


def test_after_a_loss_the_rest_of_the_old_stream_goes_first(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.pump()
    world.disconnect()
    rng = random.Random(5)
    busy(world, rng)
    last_cut = world.source.cut("before the loss")
    busy(world, rng, 3)
    world.source.open_stream()  # the splitter was restarted
    for disk in (0, 1):
        world.source.sync_begin(disk)
        world.source.copy(disk, 0, world.disks[disk][1])
        world.source.sync_end(disk)
    world.source.cut("after the sync")
    world.pump()
    assert [open_.ordinal for open_ in world.receiver.opens] == [1, 1, 2]
    assert [point.label for point in world.receiver.points] == [
        None,
        "before the loss",
        "after the sync",
    ]
    assert world.receiver.points[1].lsn == last_cut
    world.check_points()
    assert [name.ordinal for name in list_streams(world.storage, world.directories)] == [2]


def test_a_new_stream_opens_within_the_session(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.pump()
    world.source.open_stream()
    world.pump()
    assert world.shipper.renew is None
    world.source.sync_begin(0, from_zero=True)
    world.source.sync_end(0)
    world.source.sync_begin(1, from_zero=True)
    world.source.sync_end(1)
    world.source.cut()
    world.pump()
    assert [open_.ordinal for open_ in world.receiver.opens] == [1, 2]
    world.check_points()


def test_a_torn_end_of_a_dead_stream_is_left_out(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    cut = world.source.cut("last")
    world.source.write(0, 0, b"x" * 4096)
    world.source.close()
    assert world.source.stream is not None
    (segment,) = list_segments(world.storage, world.directories, StreamName(1, world.source.stream))
    with segment.path.open("r+b") as file:
        file.truncate(SEGMENT_HEADER_BYTES + world.source.next_lsn - 1000)
    world.splitter_up = False  # nobody publishes an end
    world.pump()
    assert world.receiver.durable_lsn == cut
    assert world.receiver.points[-1].label == "last"


def test_rot_in_the_live_stream_asks_for_a_new_one(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    cut = world.source.cut()
    world.source.write(0, 0, b"x" * 4096)
    world.source.cut()
    assert world.source.stream is not None
    (segment,) = list_segments(world.storage, world.directories, StreamName(1, world.source.stream))
    with segment.path.open("r+b") as file:
        file.seek(SEGMENT_HEADER_BYTES + cut + 64 + 7)
        file.write(b"!")
    world.pump()
    assert world.shipper.renew is not None
    assert str(segment.path) in world.shipper.renew.reason
    assert world.receiver.durable_lsn <= cut
    world.check_points()


def test_log_below_the_spool_asks_for_a_new_stream(tmp_path: Path) -> None:
    """The receiver was set back to before what was freed."""
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.pump()
    older = (world.receiver.durable_lsn, world.receiver.chain)
    rng = random.Random(6)
    for _ in range(30):
        world.source.write(0, 0, rng.randbytes(BLOCK))
    world.pump()
    world.source.cut()
    world.pump()
    world.receiver.durable_lsn, world.receiver.chain = older
    decided = world.connect()
    assert isinstance(decided, Plan)
    assert decided.legs == ()
    assert "spool holds" in decided.renew


def test_a_spool_with_another_history_at_the_same_lsn_is_not_resumed(tmp_path: Path) -> None:
    """A cloned host, or a splitter that lost its state: same LSNs, other bytes."""
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.source.write(0, 0, b"a" * 4096)
    world.source.cut()
    world.pump()
    world.receiver.chain ^= 1
    decided = world.connect()
    assert isinstance(decided, Plan)
    assert "another log" in decided.renew
    assert not world.produce()


def test_reused_ordinals_are_never_opened(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.source.cut()
    world.pump()
    world.source.ordinal = 0  # the splitter's state is lost
    world.source.open_stream(next_lsn=0)
    world.source.sync_begin(0, from_zero=True)
    decided = world.connect()
    assert isinstance(decided, Plan)
    assert "closed" in decided.renew
    assert world.shipper.above_ordinal == 1
    world.source.open_stream(above_ordinal=world.shipper.above_ordinal, next_lsn=1 << 40)
    world.source.sync_begin(0, from_zero=True)
    world.pump()
    assert world.receiver.opens[-1].ordinal == 2


def test_a_receiver_that_was_rolled_back_is_fed_only_after_a_persons_word(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.pump()
    world.receiver.roll_back()
    world.source.write(0, 0, b"unwanted")
    assert isinstance(world.connect(), Paused)
    assert not world.produce()
    world.restart_agent()
    assert isinstance(world.connect(), Paused)
    world.shipper.accept_generation()
    decided = world.connect()
    assert isinstance(decided, Plan)
    assert decided.legs == ()  # the closed stream stays closed
    assert "closed" in decided.renew
    world.source.open_stream(above_ordinal=world.shipper.above_ordinal)
    for disk in (0, 1):
        world.source.sync_begin(disk)
        world.source.copy(disk, 0, world.disks[disk][1])
        world.source.sync_end(disk)
    world.source.cut()
    world.pump()
    world.check_points()


def test_a_receiver_that_forgot_a_generation_is_fenced(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.receiver.generation = 3
    world.pump()
    world.restart_agent()
    world.receiver.generation = 2
    assert world.connect() == Fenced(3, 2)
    assert not world.produce()
    world.receiver.generation = 3
    world.pump()


def sync_all(world: World, rng: random.Random) -> None:
    """A resync by a mirror: its own zero pass, the copy in order, guest writes between."""
    source = world.source
    source.open_stream()
    for disk, (_, size) in enumerate(world.disks):
        source.sync_begin(disk)
        if rng.random() < 0.5:
            source.zero(disk, 0, size, counts=False)
        for offset in range(0, size, BLOCK):
            if rng.random() < 0.3:
                busy(world, rng, 1)
            source.copy(disk, offset, min(BLOCK, size - offset))
            if rng.random() < 0.3:
                world.pump()
            if rng.random() < 0.1:
                world.restart_agent()
        # What the zero pass wiped and a guest write interrupted is copied again by QEMU.
    for disk in range(len(world.disks)):
        source.sync_end(disk)
    source.cut()


@pytest.mark.parametrize("seed", range(40))
def test_a_sync_makes_the_replica_equal_whatever_it_held(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    world = make(tmp_path, (6 * BLOCK, 2 * BLOCK + 512))
    world.source.begin_from_zero()
    busy(world, rng)
    world.source.cut()
    world.pump()
    world.source.state = "lost"
    for disk, (_, size) in enumerate(world.disks):  # written while nobody looked
        if rng.random() < 0.7:
            at = rng.randrange(0, size, 512)
            length = min(4096, size - at)
            world.source.content[disk][at : at + length] = rng.randbytes(length)
    sync_all(world, rng)
    world.pump()
    assert len(world.receiver.points) == 3
    world.check_points()


def test_a_sync_of_an_equal_disk_ships_next_to_nothing(tmp_path: Path) -> None:
    world = make(tmp_path, (64 * BLOCK,))
    world.source.begin_from_zero()
    rng = random.Random(7)
    for block in range(0, 64, 2):
        world.source.write(0, block * BLOCK, rng.randbytes(BLOCK))
    world.source.cut()
    world.pump()
    shipped = world.shipper.counters.wire_bytes
    world.source.open_stream()
    world.source.sync_begin(0)
    for offset in range(0, 64 * BLOCK, 4 * BLOCK):
        world.source.copy(0, offset, 4 * BLOCK)
    world.source.sync_end(0)
    world.source.cut()
    world.pump()
    world.check_points()
    assert world.shipper.counters.wire_bytes - shipped < 64 * KIB
    assert any(frame.header.reduced for frame in world.receiver.frames)


def test_a_sync_waits_for_digests_and_an_impatient_one_does_not(tmp_path: Path) -> None:
    world = make(tmp_path, (4 * BLOCK,))
    world.source.begin_from_zero()
    world.pump()
    world.source.open_stream()
    world.source.sync_begin(0)
    world.source.copy(0, 0, BLOCK)
    world.produce()
    world.deliver_up()
    while world.deliver_down():
        pass
    world.produce()
    assert world.shipper.progress.waits_for == (0, 0)
    before = world.shipper.counters.log_bytes
    world.publish()
    messages = world.shipper.produce(patient=False)
    assert world.shipper.counters.log_bytes > before
    world.up.extend(messages)
    world.source.sync_end(0)
    world.pump()


def test_cuts_and_marks_of_a_sync_never_stand_in_a_reduced_frame(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.pump()
    rng = random.Random(8)
    world.source.open_stream()
    world.source.sync_begin(0)
    for offset in range(0, 4 * BLOCK, BLOCK):
        world.source.copy(0, offset, BLOCK)
        world.source.cut()
        busy(world, rng, 2)
    world.pump()
    for frame in world.receiver.frames:
        records = world.receiver.opener.open(frame).records
        kinds = {record.type for _, record in records}
        if frame.header.reduced:
            assert kinds <= {RecordType.WRITE, RecordType.ZERO, RecordType.SAME}
        else:
            assert records[0][0] == frame.header.start_lsn
    assert len(world.receiver.points) == 1


def test_a_receiver_that_acknowledges_what_was_not_sent_breaks_the_rules(tmp_path: Path) -> None:
    world = make(tmp_path)
    world.source.begin_from_zero()
    world.connect()
    world.produce()
    with pytest.raises(UsageError, match="opened something else"):
        world.shipper.receive(Opened(77))
    world.deliver_up()
    world.deliver_down()
    with pytest.raises(UsageError, match="was sent"):
        world.shipper.receive(Ack(1 << 40, 0))


def something(world: World, rng: random.Random) -> None:
    """One event in the random life of source, splitter, agent, link and receiver."""
    choice = rng.random()
    if choice < 0.35:
        busy(world, rng, rng.randrange(8))
        world.source.cut()
    elif choice < 0.5:
        world.produce(rng.choice([1, 100 * KIB]))
    elif choice < 0.85:
        deliver = world.deliver_up if choice < 0.7 else world.deliver_down
        for _ in range(rng.randrange(6)):
            deliver()
    elif choice < 0.9:
        world.restart_agent()
        world.connect()
    elif choice < 0.93:
        world.disconnect()
    elif choice < 0.96:
        world.connect()
    elif choice < 0.98:
        world.splitter_up = False
    else:
        sync_all(world, rng)
    if rng.random() < 0.3:
        world.splitter_up = True


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_every_point_is_true_and_nothing_answered_is_lost(
    tmp_path: Path, seed: int
) -> None:
    """Random lives of source, splitter, agent, link and receiver."""
    rng = random.Random(1000 + seed)
    world = make(tmp_path, (3 * BLOCK, BLOCK))
    world.source.begin_from_zero()
    for _ in range(60):
        something(world, rng)
    world.splitter_up = True
    world.source.cut("the end")
    world.pump()
    world.check_points()
    assert world.receiver.points[-1].label == "the end"
    made = {point.lsn for point in world.receiver.points}
    assert made == set(world.source.images)
