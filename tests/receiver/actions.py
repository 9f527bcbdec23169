# SPDX-License-Identifier: Apache-2.0
"""What can happen to a group, each as a function of the world and of a source of choices."""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

from receiver.counted.witness import ClockWitness
from receiver.points.policy import HistoryPolicy, Rule, WhenFull
from replicator.base.clock import NS_PER_S
from replicator.base.errors import NoPointError, NoSpaceError, ReplicatorError, UsageError
from replicator.wire.protocol import PeerClocks
from tests.receiver.source import noise
from tests.receiver.world import World
from tests.world.faults import CHANGING_CALLS, Failure
from tests.world.storage import Stopped

S = NS_PER_S
RULES = (Rule(0, 10 * S), Rule(5 * S, 60 * S), Rule(20 * S, 300 * S))
VIEWS_MAX = 3
WEEK_S = 7 * 86_400
Draw = Callable[[int], int]
"""A number below the given one."""
Action = Callable[[World, Draw], None]


def rng_draw(rng: Random) -> Draw:
    return rng.randrange


def start(world: World, draw: Draw) -> None:
    if not world.sources:
        world.begin_stream(from_zero=bool(draw(2)))
        if world.is_syncing:
            finish_sync(world, draw)


def guest_write(world: World, draw: Draw) -> None:
    name, size = world.disks[draw(len(world.disks))]
    offset = draw(size // 512) * 512
    length = (1 + draw(16)) * 512
    if draw(4) == 0:
        offset, length = offset // 4096 * 4096, 4096 * (1 + draw(3))
    value = 1 + draw(3)  # few values, so that much comes out unchanged
    content = bytes([value]) * length if value == 1 else noise(value, length)
    if draw(3) == 0:
        content = bytes(512) + content[512:]
    world.write(name, offset, content)


def guest_zero(world: World, draw: Draw) -> None:
    name, size = world.disks[draw(len(world.disks))]
    offset = draw(size // 512) * 512
    world.zero(name, offset, (1 + draw(40)) * 512)


def cut(world: World, draw: Draw) -> None:
    label = f"label {len(world.labels)}.{draw(1 << 30)}" if draw(4) == 0 else None
    kind = "application" if draw(6) == 0 else "crash"
    world.cut(label, kind=kind, expire_ns=draw(60) * S if draw(3) == 0 else 0)


def guest_writes(world: World, draw: Draw) -> None:
    for _ in range(1 + draw(5)):
        guest_write(world, draw) if draw(4) else guest_zero(world, draw)
    if draw(2) and not world.is_syncing:
        cut(world, draw)


def ship(world: World, draw: Draw) -> None:
    world.ship(1 + draw(9), frame_records=1 + draw(4))


def acknowledge(world: World, draw: Draw) -> None:
    world.acknowledge()


def apply(world: World, draw: Draw) -> None:
    world.apply(1 + draw(4))


def settle(world: World, draw: Draw) -> None:
    world.settle()


def new_stream(world: World, draw: Draw) -> None:
    """Continuity is lost: the guest wrote what the source did not see."""
    if draw(2) and not world.is_source_dead:
        world.ship(len(world.source.records))
    world.begin_stream(from_zero=False)
    if draw(2):
        zero_first(world)
    for name, size in world.disks:
        at = draw(size // 4096) * 4096
        world.guest[name][at : at + 4096] = bytes([draw(3)]) * min(4096, size - at)


def zero_first(world: World) -> None:
    """QEMU may zero the whole target before it copies."""
    for name, size in world.disks:
        if world.plain.disks[name].syncing:
            world.log(world.source.zero(name, 0, size))


def resize(world: World, draw: Draw) -> None:
    """A disk grows or shrinks, within the stream or while the guest was off."""
    name, size = world.disks[draw(len(world.disks))]
    resized = 4096 * (1 + draw(12)) + 512 * draw(3)
    if resized == size:
        return
    in_stream = not world.is_source_dead and bool(draw(2))
    if draw(2) and not world.is_source_dead:
        world.ship(len(world.source.records))
    world.resize(name, resized, in_stream=in_stream)
    if draw(2):
        zero_first(world)


def sync_some(world: World, draw: Draw) -> None:
    for name, disk in world.plain.disks.items():
        if disk.syncing:
            size = len(world.guest[name])
            at = draw(size // 4096) * 4096
            world.sync_range(name, at, min(4096 * (1 + draw(3)), size - at))


def finish_sync(world: World, draw: Draw) -> None:
    for name, disk in list(world.plain.disks.items()):
        if disk.syncing:
            for _ in range(draw(4)):
                guest_write(world, draw) if draw(3) else guest_zero(world, draw)
            world.sync_all(name)
    world.cut("synced" if draw(5) == 0 and "synced" not in world.labels else None)


def roll_back(world: World, draw: Draw) -> None:
    if not world.announced:
        return
    sequences = sorted(world.announced)
    roll_back_to(world, sequences[draw(len(sequences))], draw)


def roll_back_to(world: World, sequence: int, draw: Draw, writes: int = 0) -> None:
    """Refused where a disk has another size since, and nothing is closed by that."""
    try:
        world.rollback(sequence, writes)
    except UsageError:
        assert world.is_before_resize(sequence)
        world.not_rolled_back()
    else:
        after_rollback(world, draw)


def after_rollback(world: World, draw: Draw) -> None:
    """The source comes back, to a group whose stream is closed: a sync of everything."""
    if draw(2):
        world.begin_stream(from_zero=False)
        if draw(2):
            zero_first(world)
        finish_sync(world, draw)


def roll_back_to_write(world: World, draw: Draw) -> None:
    """A write that cannot be had is refused, and nothing is closed by that."""
    world.acknowledge()
    points = [each for each in sorted(world.announced) if world.writes_behind(each)]
    if not points or world.group.known.condition == "rolling-back":
        return
    sequence = points[draw(len(points))]
    try:
        roll_back_to(world, sequence, draw, 1 + draw(len(world.writes_behind(sequence))))
    except NoPointError:
        world.not_rolled_back()


def look_at_writes(world: World, draw: Draw) -> None:
    """Each write behind a point that can be had is what the source's disks held."""
    points = [
        each for each in sorted(world.announced) if world.group.applier.is_point_applied(each)
    ]
    if points:
        world.check_writes(points[draw(len(points))])


def retain(world: World, draw: Draw) -> None:
    world.retain(1 + draw(60_000))


def age(world: World, draw: Draw) -> None:
    """Some time passes; what it takes is often more than the rules or the lock keep."""
    lock_ns = (1 + draw(20)) * S if draw(8) == 0 else 0
    budget = [1 << 30, 1 << 30, 1 + draw(60_000)][draw(3)]
    when_full: WhenFull = "thin" if draw(3) else "pause"
    policy = HistoryPolicy(budget, RULES, draw(30) * S, when_full, lock_ns)
    world.age(policy, draw(40) * S)


def step_the_clock(world: World, draw: Draw) -> None:
    """Of the receiver's machine: often it is right again soon."""
    steps = [0, 0, 3 * S, -5 * S, 3600 * S, -3600 * S, WEEK_S * S]
    world.clock.step_ns = steps[draw(len(steps))]


def tend_the_clock(world: World, draw: Draw) -> None:
    """What goes on by itself: it is kept, and agents whose clocks are right confirm it."""
    witness = ClockWitness("kvm1")
    now_ns = world.clock.monotonic_ns()
    for ago_s in (600, 300, 0):
        told_ns = now_ns - ago_s * S
        witness.hear(PeerClocks(world.clock.true_ns - ago_s * S, told_ns, told_ns))
    world.counted.tend([witness] if draw(2) else [], now_ns, lambda _before, _after: 0)


def accept_the_clock(world: World, draw: Draw) -> None:
    """A person does, who has looked."""
    if not world.clock.step_ns:
        world.counted.accept(dry_run=False)


def give_up(world: World, draw: Draw) -> None:
    """Some of the older points, as a thinning would choose them."""
    held = {sequence for sequence, _, _ in world.views}
    gone = [
        point.sequence
        for point in world.group.points.all[:-1]
        if point.label is None
        and point.kind in ("crash", "application")
        and point.sequence not in held
        and world.group.applier.is_point_applied(point.sequence)
        and draw(2)
    ]
    if gone and world.group.known.condition != "rolling-back":
        world.give_up(gone)


def tidy(world: World, draw: Draw) -> None:
    world.tidy(1 + draw(6))


def scrub(world: World, draw: Draw) -> None:
    """Some steps of one; it finds nothing, whatever has happened before."""
    task = world.group.scrub
    task.begin()
    for _ in range(4 + draw(30)):
        if not task.state.is_running or not task.is_ready:
            break
        segment = task.step()
        if segment is not None and task.is_ready:
            task.take_segment(segment, task.read_segment(segment))
    assert not task.state.bad or world.has_rotted


def open_view(world: World, draw: Draw) -> None:
    """Held open across all that follows: applying, rollbacks, resyncs, compaction."""
    points = [
        each for each in sorted(world.announced) if world.group.applier.is_point_applied(each)
    ]
    if points and len(world.views) < VIEWS_MAX:
        world.open_view(points[draw(len(points))])


def close_view(world: World, draw: Draw) -> None:
    if world.views:
        world.close_view(draw(len(world.views)))


ACTIONS: dict[str, tuple[int, Action]] = {
    "guest_writes": (8, guest_writes),
    "cut": (4, cut),
    "ship": (6, ship),
    "acknowledge": (4, acknowledge),
    "apply": (7, apply),
    "settle": (2, settle),
    "new_stream": (1, new_stream),
    "resize": (1, resize),
    "sync_some": (2, sync_some),
    "finish_sync": (2, finish_sync),
    "roll_back": (1, roll_back),
    "roll_back_to_write": (1, roll_back_to_write),
    "look_at_writes": (3, look_at_writes),
    "retain": (1, retain),
    "age": (2, age),
    "step_the_clock": (2, step_the_clock),
    "tend_the_clock": (3, tend_the_clock),
    "accept_the_clock": (1, accept_the_clock),
    "give_up": (2, give_up),
    "tidy": (5, tidy),
    "scrub": (2, scrub),
    "open_view": (2, open_view),
    "close_view": (3, close_view),
}
"""How often, and what. Each may raise Stopped at any storage call."""


def is_possible(world: World, name: str) -> bool:
    """A source whose stream was closed has nothing to say until it has begun a new one."""
    closed = world.is_source_dead
    if name in ("guest_writes", "cut", "ship", "settle"):
        return not closed
    if name in ("new_stream", "resize"):
        return True
    if name in ("sync_some", "finish_sync"):
        return not closed and world.is_syncing
    return True


def perform(world: World, name: str, draw: Draw) -> None:
    if is_possible(world, name):
        ACTIONS[name][1](world, draw)


def crash_in(world: World, name: str, draw: Draw) -> None:
    """The process dies before one of the next storage calls, wherever that is."""
    world.storage.stop_at(1 + draw(40))
    try:
        perform(world, name, draw)
    except Stopped:
        pass
    else:
        world.storage.heal()
    crash(world, draw)


def crash(world: World, draw: Draw) -> None:
    again = 1 + draw(30) if draw(2) else 0
    power = bool(draw(2))
    off_ns = draw(100) * S if power and draw(2) else None
    world.crash(power=power, recover_stop=again, off_ns=off_ns)
    world.finish_rollback()


def fail_in(world: World, name: str, draw: Draw) -> None:
    """One of the next storage calls fails; afterwards all is well again and the work goes on."""
    calls = [sorted(CHANGING_CALLS), ["pwritev"], ["datasync"], ["sync_directory"]][draw(4)]
    code = errno.ENOSPC if draw(2) else errno.EIO
    nth = 1 + draw(25)
    world.storage.plan(Failure(frozenset(calls), nth, code))
    try:
        perform(world, name, draw)
    except (OSError, NoSpaceError):
        world.storage.heal()
        world.after_mishap()
    except ReplicatorError as error:
        raise AssertionError(f"a fault of the disk was taken for {error!r}") from error
    finally:
        world.storage.heal()
