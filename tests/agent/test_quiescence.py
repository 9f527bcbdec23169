# SPDX-License-Identifier: Apache-2.0
"""Freeze, cut, thaw: with every step failing, hanging and being cancelled, no guest stays frozen,
and no point calls itself application-consistent that is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from agent.memory import AgentMemory, FrozenNote
from agent.quiesce.sequence import FreezeError, Quiesced, Quiescence
from agent.quiesce.watch import Word
from replicator.base.errors import (
    NoPointError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.base.storage import SystemStorage
from replicator.config.agent import Driver, GroupConfig, Quiesce
from replicator.config.values import DurationNs
from replicator.control.splitter import CutKind, Marked
from tests.splitter.rig import SECOND, ManualClock

DOMAINS = ("db", "web")
Act = Callable[[], Awaitable[None]]


class World:
    """Guests, splitter and watchdog in memory. `acts[step]` is what a step does first: it may
    raise, hang, or move the clock. The watchdog's fault model: it thaws when it is told or let go,
    and once more when the freezes have returned; a late freeze is seen by it only then."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = ManualClock()
        self.path = tmp_path
        self.memory = AgentMemory(SystemStorage(), tmp_path / "state")
        self.acts: dict[str, Act] = {}
        self.steps: list[str] = []
        self.frozen: set[str] = set()
        self.cuts: list[tuple[CutKind, frozenset[str]]] = []
        self.guards: list[FakeGuard] = []
        self.changed = asyncio.Event()

    async def step(self, name: str) -> None:
        self.steps.append(name)
        self.changed.set()
        if name in self.acts:
            await self.acts[name]()

    async def reached(self, name: str) -> None:
        async with asyncio.timeout(10):
            while name not in self.steps:
                self.changed.clear()
                await self.changed.wait()

    def quiescence(
        self, *, quiesce: Quiesce = "require", driver: Driver = "libvirt", scripts: bool = True
    ) -> Quiescence:
        def script(phase: str) -> tuple[str, ...]:
            note = f'echo "{phase} $REPLICATOR_LABEL" >>{self.path}/scripts'
            text = f"{note}; test ! -e {self.path}/{phase}-fails"
            return ("/bin/sh", "-c", text) if scripts else ()

        config = GroupConfig(
            name="g",
            driver=driver,
            quiesce=quiesce,
            quiesce_pre=script("pre"),
            quiesce_post=script("post"),
            freeze_timeout_ns=DurationNs(SECOND // 5),
        )
        freezer = FakeFreezer(self) if driver == "libvirt" else None
        return Quiescence(config, freezer, self.memory, self.clock, self.start_guard)

    async def start_guard(self, command: Sequence[str]) -> FakeGuard:
        await self.step("guard")
        self.guards.append(FakeGuard(self, command))
        return self.guards[-1]

    async def cut(self, kind: CutKind, *, not_after_ns: int | None) -> Marked:
        await self.step(f"cut {kind}")
        if not_after_ns is not None and self.clock.monotonic_ns() >= not_after_ns:
            raise NoPointError("too late")
        self.cuts.append((kind, frozenset(self.frozen)))
        return Marked(lsn=64, time_ns=1)

    def scripts_run(self) -> list[str]:
        path = self.path / "scripts"
        return path.read_text().splitlines() if path.exists() else []


class FakeFreezer:
    def __init__(self, world: World) -> None:
        self.domains = DOMAINS
        self._world = world

    async def require_agents(self) -> None:
        await self._world.step("require")

    async def freeze(self, domain: str) -> int:
        await self._world.step(f"freeze {domain}")
        self._world.frozen.add(domain)
        return 2

    def watchdog(self, domains: Sequence[str], freeze_timeout_ns: int) -> Sequence[str]:
        assert freeze_timeout_ns == SECOND // 5
        return domains


class FakeGuard:
    def __init__(self, world: World, domains: Sequence[str]) -> None:
        self.ended = asyncio.Event()
        self.exit_code: int | None = None
        self.said: list[Word] = []
        self._world = world
        self._domains = domains
        self._count: int | None = None

    def say(self, word: Word) -> None:
        self.said.append(word)
        if word is not Word.FREEZING:
            self._look()

    def let_go(self) -> None:
        self.say(Word.GONE)

    async def thaw(self, limit_seconds: float) -> int:
        self.say(Word.THAW)
        await self._world.step("thaw")
        assert self._count is not None
        return self._count

    def _look(self) -> None:
        if self.ended.is_set() or not {Word.THAW, Word.GONE} & set(self.said):
            return
        thawed = self._world.frozen & set(self._domains)
        self._world.frozen -= thawed
        self._count = (self._count or 0) + 2 * len(thawed)
        if Word.RETURNED in self.said or Word.FREEZING not in self.said:
            self.end(0)

    def end(self, code: int) -> None:
        self.exit_code = code
        self.ended.set()


def failing(error: ReplicatorError) -> Act:
    async def act() -> None:
        raise error

    return act


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def settled(world: World) -> None:
    """What comes behind: nothing frozen, nothing noted."""
    async with asyncio.timeout(10):
        for guard in world.guards:
            await guard.ended.wait()
    await asyncio.sleep(0)  # who waits for that end goes on
    await asyncio.sleep(0)
    assert world.frozen == set()
    assert world.memory.frozen("g") is None


async def test_the_cut_is_made_while_all_are_frozen(world: World) -> None:
    async def a_while() -> None:
        world.clock.move(SECOND // 8)

    world.acts["cut application"] = a_while
    made = await world.quiescence().run("before upgrade", world.cut)
    assert world.cuts == [("application", frozenset(DOMAINS))]
    assert made == Quiesced(Marked(lsn=64, time_ns=1), "application", 0.125, None)
    assert world.guards[0].said[:3] == [Word.FREEZING, Word.RETURNED, Word.THAW]
    assert world.scripts_run() == ["pre before upgrade", "post before upgrade"]
    assert world.steps.index("guard") < world.steps.index("freeze db")
    await settled(world)


async def test_the_note_is_there_before_anything_is_frozen(world: World) -> None:
    seen: list[FrozenNote | None] = []

    async def look() -> None:
        seen.append(world.memory.frozen("g"))

    world.acts["freeze db"] = look
    await world.quiescence().run("x", world.cut)
    assert seen == [FrozenNote(DOMAINS, "x")]
    await settled(world)


FAILURES: dict[str, type[ReplicatorError]] = {
    "require": UnreachableError,
    "guard": FreezeError,
    "freeze db": FreezeError,
    "freeze web": FreezeError,
    "cut application": NoPointError,
    "thaw": UnreachableError,
}


@pytest.mark.parametrize("step", FAILURES)
async def test_a_failure_at_any_step_leaves_nothing_frozen(world: World, step: str) -> None:
    error: ReplicatorError
    error = NoPointError("lost") if step.startswith("cut") else UnreachableError("no answer")
    if step.startswith("freeze"):
        error = ReplicatorError("I/O error")
    world.acts[step] = failing(error)
    quiescence = world.quiescence()
    with pytest.raises(FAILURES[step]):
        await quiescence.run("x", world.cut)
    await settled(world)
    assert [kind for kind, _ in world.cuts] == (["application"] if step == "thaw" else [])
    expected = [] if step == "require" else ["pre x", "post x"]
    assert world.scripts_run() == expected
    assert quiescence.figures.outcomes == {"failed": 1}
    world.acts.clear()
    assert (await quiescence.run("y", world.cut)).kind == "application"


@pytest.mark.parametrize("step", ["guard", "freeze db", "cut application", "thaw"])
async def test_a_cancellation_at_any_step_leaves_nothing_frozen(world: World, step: str) -> None:
    world.acts[step] = hang
    quiescence = world.quiescence()
    marking = asyncio.create_task(quiescence.run("x", world.cut))
    await world.reached(step)
    marking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await marking
    assert world.frozen <= {"web"}  # its freeze may come behind: the watchdog waits for that
    assert world.scripts_run() == ["pre x", "post x"]
    if step != "freeze db":
        await settled(world)
    await quiescence.close()


async def test_a_freeze_that_hangs_is_given_up_and_thawed_when_it_comes(world: World) -> None:
    goes_on = asyncio.Event()
    world.acts["freeze web"] = lambda: _until(goes_on)
    quiescence = world.quiescence()
    with pytest.raises(FreezeError, match="web could not be frozen within freeze_timeout"):
        await quiescence.run("x", world.cut)
    assert world.cuts == []
    assert world.frozen == set()
    assert not world.guards[0].ended.is_set(), "it waits for the freeze that is on its way"
    with pytest.raises(OwnedError, match="thaw of an earlier"):
        await quiescence.run("y", world.cut)
    assert world.memory.frozen("g") is not None
    goes_on.set()
    await settled(world)
    assert Word.RETURNED in world.guards[0].said


async def test_a_cut_that_hangs_is_given_up(world: World) -> None:
    world.acts["cut application"] = hang
    with pytest.raises(UnreachableError, match="did not cut before"):
        await world.quiescence().run("x", world.cut)
    assert world.cuts == []
    await settled(world)


async def test_a_cut_that_is_late_is_refused_by_the_splitter(world: World) -> None:
    """The watchdog may have thawed by then."""

    async def late() -> None:
        world.clock.move(SECOND // 5)

    world.acts["cut application"] = late
    with pytest.raises(NoPointError, match="too late"):
        await world.quiescence().run("x", world.cut)
    await settled(world)


async def test_who_tries_gets_a_crash_consistent_point_with_a_notice(world: World) -> None:
    for step in ("require", "guard", "freeze db"):
        world.acts = {step: failing(UnreachableError("no agent answers"))}
        made = await world.quiescence(quiesce="try").run("x", world.cut)
        assert made.kind == "crash"
        assert made.notice is not None
        assert "no agent answers" in made.notice
        assert world.cuts[-1] == ("crash", frozenset())
        for guard in world.guards:
            guard.end(0)
        await asyncio.sleep(0)


async def test_a_pre_script_that_fails_freezes_nothing_and_post_is_run(world: World) -> None:
    (world.path / "pre-fails").touch()
    with pytest.raises(ReplicatorError, match="pre script"):
        await world.quiescence(quiesce="try").run("x", world.cut)
    assert world.scripts_run() == ["pre x", "post x"]
    assert world.steps == ["require"]
    await settled(world)


async def test_a_post_script_that_fails_does_not_unmake_the_point(world: World) -> None:
    (world.path / "post-fails").touch()
    assert (await world.quiescence().run("x", world.cut)).kind == "application"
    await settled(world)


async def test_somebody_else_who_thaws_is_noticed(world: World) -> None:
    async def thaw() -> None:
        world.frozen.clear()

    world.acts["cut application"] = thaw
    made = await world.quiescence().run("x", world.cut)
    assert made.notice is not None
    assert "somebody else" in made.notice
    await settled(world)


async def test_one_at_a_time(world: World) -> None:
    go_on = asyncio.Event()
    world.acts["cut application"] = lambda: _until(go_on)
    quiescence = world.quiescence()
    first = asyncio.create_task(quiescence.run("x", world.cut))
    await world.reached("cut application")
    with pytest.raises(OwnedError, match="under way"):
        await quiescence.run("y", world.cut)
    go_on.set()
    assert (await first).kind == "application"
    await settled(world)


async def test_a_source_without_guest_agent_is_refused_unless_scripts_do_it(world: World) -> None:
    with pytest.raises(UsageError, match="nobody can quiesce"):
        await world.quiescence(driver="external", scripts=False).run("x", world.cut)
    made = await world.quiescence(driver="external").run("x", world.cut)
    assert (made.kind, made.frozen_seconds) == ("application", None)
    assert world.scripts_run() == ["pre x", "post x"]
    assert world.memory.frozen("g") is None


async def test_a_watchdog_that_was_killed_is_replaced(world: World) -> None:
    quiescence = world.quiescence()

    async def killed() -> None:
        world.guards[0].end(-9)
        world.frozen.update(DOMAINS)  # it had thawed nothing
        if len(world.guards) == 1:
            raise UnreachableError("the thaw watchdog has ended")

    world.acts["thaw"] = killed
    with pytest.raises(UnreachableError):
        await quiescence.run("x", world.cut)
    del world.acts["thaw"]
    async with asyncio.timeout(10):
        while len(world.guards) < 2:
            world.changed.clear()
            await world.changed.wait()
        world.guards[1].say(Word.RETURNED)
    await settled(world)
    await quiescence.close()


async def test_a_start_after_a_crash_thaws_and_runs_post(world: World) -> None:
    world.memory.note_frozen("g", FrozenNote(DOMAINS, "x"))
    world.frozen.update(DOMAINS)
    quiescence = world.quiescence()
    recovering = asyncio.create_task(quiescence.recover())
    await world.reached("thaw")
    with pytest.raises(OwnedError, match="unclean end"):
        await quiescence.run("y", world.cut)
    world.guards[0].say(Word.RETURNED)  # stands for the time after which no freeze can come
    await recovering
    assert world.scripts_run() == ["post x"]
    await settled(world)
    assert (await quiescence.run("y", world.cut)).kind == "application"


async def test_a_note_that_cannot_be_read_is_said_and_replication_goes_on(world: World) -> None:
    world.memory.note_frozen("g", FrozenNote(DOMAINS))
    (world.path / "state/frozen/g.json").write_text("{")
    quiescence = world.quiescence()
    await quiescence.recover()
    with pytest.raises(OwnedError, match="cannot be read"):
        await quiescence.run("y", world.cut)


async def _until(event: asyncio.Event) -> None:
    await event.wait()
