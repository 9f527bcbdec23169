# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver's plan: it converges from every state, and after an interruption anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from uuid import UUID

import pytest

from agent.drivers.libvirt.domain_xml import Mirror
from agent.drivers.libvirt.plan import (
    BeginSync,
    Close,
    ConfirmReady,
    Declare,
    DiskFacts,
    EndCopy,
    OpenStream,
    RecordXml,
    Rest,
    StartCopy,
    Step,
    Told,
    Wait,
    next_steps,
)
from replicator.control.splitter import (
    DiskState,
    GroupState,
    LatencyStatus,
    SplitterDiskStatus,
    SplitterGroupStatus,
)

INSTANCE = UUID(int=7)


def next_step(group: SplitterGroupStatus, disks: tuple[DiskFacts, ...], told: Told) -> Step:
    """The most urgent one."""
    return next(next_steps(group, disks, told))


def fact(name: str) -> DiskFacts:
    domain, target = name.split("-")
    return DiskFacts(name, domain, target, 1 << 20, INSTANCE, mirror=None, ours=False)


def mirror(export: str, *, ready: bool) -> Mirror:
    return Mirror("/s.sock", export, ready, 0)


@dataclass
class World:
    """Splitter and libvirt as far as the plan sees them, behaving as the real ones do."""

    disks: dict[str, DiskFacts]
    state: GroupState = "closed"
    reason: str = ""
    stream: str | None = None
    ordinal: int = 0
    declared: dict[str, SplitterDiskStatus] = field(default_factory=dict)
    xml: list[str] = field(default_factory=list)
    final_cuts: int = 0
    syncs: int = 0
    connections: int = 0

    def status(self) -> SplitterGroupStatus:
        return SplitterGroupStatus(
            name="g",
            state=self.state,
            reason=self.reason,
            stream=self.stream,
            ordinal=self.ordinal,
            first_lsn=0,
            end_lsn=0,
            last_cut_time_ns=0,
            held_until_ns=0,
            disks=list(self.declared.values()),
            memory_bytes=0,
            disk_bytes=0,
            latency=LatencyStatus(bounds_us=[], counts=[0], sum_us=0, count=0),
            requests=0,
            bytes=0,
        )

    def facts(self) -> tuple[DiskFacts, ...]:
        return tuple(self.disks.values())

    def set_disk(
        self, name: str, state: DiskState, *, connected: int, export: str = "", flushed_by: int = 0
    ) -> None:
        self.declared[name] = SplitterDiskStatus(
            name=name, index=0, instance=str(INSTANCE), size=1 << 20, connected=connected,
            state=state, export=export or f"g/{name}", flushed_by=flushed_by,
        )  # fmt: skip

    def begin_sync(self, name: str) -> None:
        self.syncs += 1
        self.set_disk(name, "syncing", connected=0, export=f"g/{name}/{self.syncs}")

    def void(self, name: str) -> None:
        """The splitter drops the connections; the job may live on for all that it knows."""
        self.set_disk(name, "idle", connected=0)

    def set_mirror(self, name: str, value: Mirror | None) -> None:
        self.disks[name] = replace(self.disks[name], mirror=value, ours=value is not None)

    def copies_finish(self) -> None:
        for disk in self.facts():
            if disk.mirror is None or disk.mirror.ready:
                continue
            self.set_mirror(disk.name, mirror(disk.mirror.export, ready=True))
            status = self.declared[disk.name]
            if status.export == disk.mirror.export and status.state == "syncing":
                self.connections += 1
                self.set_disk(
                    disk.name, "flushed", connected=1, export=status.export,
                    flushed_by=self.connections,
                )  # fmt: skip

    def do(self, step: Step) -> None:
        match step:
            case OpenStream():
                self.state, self.ordinal, self.declared = "syncing", self.ordinal + 1, {}
                self.stream = str(self.ordinal)
            case Declare(disk):
                self.set_disk(disk.name, "idle", connected=0)
            case BeginSync(disk):
                assert disk.mirror is None, "a copy of before lives"
                self.begin_sync(disk.name)
            case RecordXml(domain):
                self.xml.append(domain)
            case StartCopy(disk, export):
                assert disk.mirror is None
                assert export == self.declared[disk.name].export
                self.set_mirror(disk.name, mirror(export, ready=False))
                self.set_disk(disk.name, "syncing", connected=1, export=export)
            case ConfirmReady(disk, connection):
                status = self.declared[disk.name]
                assert status.flushed_by == connection
                self.set_disk(disk.name, "complete", connected=1, export=status.export)
                if all(status.state == "complete" for status in self.declared.values()):
                    self.state = "ready"
            case EndCopy(disk):
                self.set_mirror(disk.name, None)
            case Close(reason, final_cut):
                self.state, self.reason, self.stream = "closed", reason, None
                self.final_cuts += final_cut
            case Wait() | Rest():
                raise AssertionError("nothing to do")


def told_after(told: Told, step: Step, world: World) -> Told:
    if told.stream != world.stream:
        told = Told(world.stream)
    match step:
        case RecordXml(domain):
            return replace(told, domains=told.domains | {domain})
        case ConfirmReady(disk, connection):
            return replace(told, ready=told.ready | {(disk.name, connection)})
    return told


def converge(world: World, told: Told | None = None) -> list[Step]:
    """Does steps until there is none; the copies finish whenever the plan rests for them."""
    told = told or Told()
    steps: list[Step] = []
    while len(steps) < 50:
        step = next_step(world.status(), world.facts(), told)
        if isinstance(step, Rest | Wait):
            before = world.facts()
            world.copies_finish()
            if world.facts() == before:
                return [*steps, step]
            continue
        world.do(step)
        told = told_after(told, step, world)
        steps.append(step)
    raise AssertionError(f"does not converge: {steps[-6:]}")


def two_disks() -> World:
    return World({name: fact(name) for name in ("web-vda", "web-vdb")})


def test_a_new_group_is_protected_step_by_step() -> None:
    world = two_disks()
    kinds = [type(step) for step in converge(world)]
    assert kinds == [
        OpenStream, Declare, Declare, BeginSync, BeginSync, RecordXml,
        StartCopy, StartCopy, ConfirmReady, ConfirmReady, Rest,
    ]  # fmt: skip
    assert (world.state, world.xml) == ("ready", ["web"])


@pytest.mark.parametrize("done", range(11))
def test_an_agent_that_dies_after_any_step_goes_on_without_a_new_stream(done: int) -> None:
    world, told = two_disks(), Told()
    for _ in range(done):
        step = next_step(world.status(), world.facts(), told)
        if isinstance(step, Rest):
            world.copies_finish()
            step = next_step(world.status(), world.facts(), told)
        if isinstance(step, Rest):
            break
        world.do(step)
        told = told_after(told, step, world)
    converge(world, Told())  # a new agent remembers nothing
    assert (world.state, world.ordinal) == ("ready", 1)


def test_a_running_protection_is_adopted_untouched() -> None:
    world = two_disks()
    converge(world)
    assert converge(world, Told()) == [Rest()]


def test_a_job_that_ended_silently_closes_the_stream_and_syncs_again() -> None:
    world = two_disks()
    converge(world)
    world.set_mirror("web-vdb", None)  # its socket is still open: the splitter saw nothing
    steps = converge(world)
    assert isinstance(steps[0], Close)
    assert not steps[0].final_cut
    assert EndCopy in {type(step) for step in steps}
    assert (world.state, world.ordinal, world.final_cuts) == ("ready", 2, 0)


def test_copies_of_a_dead_stream_end_before_a_new_one_opens() -> None:
    world = two_disks()
    converge(world)
    world.state, world.stream, world.reason = "lost", None, "the splitter was restarted"
    kinds = [type(step) for step in converge(world)]
    assert kinds[:3] == [EndCopy, EndCopy, OpenStream]


def test_a_foreign_block_job_is_waited_for_and_never_ended() -> None:
    world = two_disks()
    foreign = Mirror("", "", ready=False, reconnect_seconds=0)
    world.disks["web-vda"] = replace(world.disks["web-vda"], mirror=foreign, ours=False)
    (step,) = converge_without_copies(world)
    assert isinstance(step, Wait)
    assert "another block copy" in step.reason


def converge_without_copies(world: World) -> list[Step]:
    return [next_step(world.status(), world.facts(), Told())]


def test_another_disk_under_the_same_name_is_declared_in_a_new_stream() -> None:
    world = two_disks()
    converge(world)
    world.disks["web-vda"] = replace(world.disks["web-vda"], instance=UUID(int=8))
    step = next_step(world.status(), world.facts(), Told())
    assert isinstance(step, Close)
    assert "another disk" in step.reason


def copying(count: int = 8) -> tuple[World, Told]:
    """Two disks whose copies are under way."""
    world, told = two_disks(), Told()
    for _ in range(count):
        step = next_step(world.status(), world.facts(), told)
        world.do(step)
        told = told_after(told, step, world)
    assert next_step(world.status(), world.facts(), told) == Rest()
    return world, told


def test_ready_is_confirmed_only_as_read_back_and_for_the_connection_that_has_flushed() -> None:
    world, told = copying()
    export = world.declared["web-vda"].export
    world.set_mirror("web-vda", mirror(export, ready=True))
    assert next_step(world.status(), world.facts(), told) == Rest(), "its FLUSH is not seen yet"
    world.set_disk("web-vda", "flushed", connected=1, export=export, flushed_by=7)
    step = next_step(world.status(), world.facts(), told)
    assert step == ConfirmReady(world.disks["web-vda"], 7)
    told = Told(world.stream, ready=frozenset({("web-vda", 6)}))
    step = next_step(world.status(), world.facts(), replace(told, domains=frozenset({"web"})))
    assert step == ConfirmReady(world.disks["web-vda"], 7), "6 was another connection"


def test_a_ready_that_libvirt_shows_before_the_flush_was_told_confirms_nothing() -> None:
    world, told = copying()
    export = world.declared["web-vda"].export
    world.set_disk("web-vda", "flushed", connected=1, export=export, flushed_by=7)
    assert next_step(world.status(), world.facts(), told) == Rest()


@pytest.mark.parametrize("ready", [False, True])
def test_an_old_copy_in_a_living_stream_is_ended_before_a_sync_begins(*, ready: bool) -> None:
    world, told = copying()
    world.void("web-vda")
    world.set_mirror("web-vda", mirror("g/web-vda/1", ready=ready))
    steps = list(next_steps(world.status(), world.facts(), told))
    assert steps[0] == EndCopy(world.disks["web-vda"])
    assert not [step for step in steps if isinstance(step, BeginSync)]
    world.copies_finish()
    kinds = [type(step) for step in converge(world, Told())]
    assert kinds[:2] == [EndCopy, BeginSync]
    assert (world.state, world.ordinal) == ("ready", 1), "the stream goes on"


def test_a_copy_of_another_sync_is_ended_though_its_disk_is_in_a_sync() -> None:
    """An agent of before, or a person, may have begun it."""
    world, told = copying()
    world.begin_sync("web-vda")
    steps = list(next_steps(world.status(), world.facts(), told))
    assert steps[0] == EndCopy(world.disks["web-vda"])
    assert not [step for step in steps if isinstance(step, StartCopy | ConfirmReady)]


def test_ready_of_an_earlier_copy_confirms_nothing() -> None:
    """Not even where the disk's own sync has flushed: whose READY it is stands in its export."""
    world, told = copying()
    export = world.declared["web-vda"].export
    world.set_disk("web-vda", "flushed", connected=1, export=export, flushed_by=7)
    world.set_mirror("web-vda", mirror("g/web-vda/99", ready=True))
    steps = list(next_steps(world.status(), world.facts(), told))
    assert not [step for step in steps if isinstance(step, ConfirmReady)]
    world.set_mirror("web-vda", mirror(export, ready=True))
    assert next_step(world.status(), world.facts(), told) == ConfirmReady(world.disks["web-vda"], 7)


def test_a_complete_disk_with_a_copy_of_another_sync_is_a_loss() -> None:
    world = two_disks()
    converge(world)
    world.set_mirror("web-vda", mirror("g/web-vda/99", ready=True))
    step = next_step(world.status(), world.facts(), Told())
    assert isinstance(step, Close)
    assert not step.final_cut
    assert "another sync" in step.reason


def test_no_copy_begins_into_an_export_that_somebody_is_connected_to() -> None:
    world, told = copying()
    world.set_mirror("web-vda", None)
    steps = list(next_steps(world.status(), world.facts(), told))
    assert not [step for step in steps if isinstance(step, StartCopy)]
    assert isinstance(steps[0], Wait)
    assert "web-vda" in steps[0].reason
    export = world.declared["web-vda"].export
    world.set_disk("web-vda", "syncing", connected=0, export=export)
    assert next_step(world.status(), world.facts(), told) == StartCopy(
        world.disks["web-vda"], export
    )


def test_what_one_disk_waits_for_does_not_hold_up_another() -> None:
    world, told = copying()
    world.void("web-vda")
    world.copies_finish()
    flushed = world.declared["web-vdb"].flushed_by
    steps = list(next_steps(world.status(), world.facts(), told))
    assert steps == [
        EndCopy(world.disks["web-vda"]),
        ConfirmReady(world.disks["web-vdb"], flushed),
        Rest(),
    ]


def grow(world: World, name: str) -> None:
    world.disks[name] = replace(world.disks[name], size=3 << 20)


def test_a_resized_disk_is_why_a_new_stream_opens() -> None:
    world = two_disks()
    converge(world)
    world.state, world.stream, world.reason = "closed", None, "shut off: web"
    for name in world.disks:
        world.set_mirror(name, None)
    grow(world, "web-vdb")
    step = next_step(world.status(), world.facts(), Told())
    assert step == OpenStream("web-vdb was resized from 1 MiB to 3 MiB")


def test_a_resized_disk_without_a_copy_is_declared_anew_beside_the_others() -> None:
    """It was taken out of the group for that."""
    world = two_disks()
    converge(world)
    world.void("web-vdb")
    world.set_mirror("web-vdb", None)
    grow(world, "web-vdb")
    step = next_step(world.status(), world.facts(), Told("1"))
    assert step == Declare(world.disks["web-vdb"])


def test_a_disk_that_was_resized_behind_its_copy_ends_the_stream() -> None:
    world = two_disks()
    converge(world)
    world.set_mirror("web-vda", None)
    grow(world, "web-vda")
    step = next_step(world.status(), world.facts(), Told("1"))
    assert step == Close("web-vda was resized from 1 MiB to 3 MiB")
