# SPDX-License-Identifier: Apache-2.0
"""A quiesced point: pre script, watchdog, freeze, cut, thaw, post script.

What makes the point application-consistent: a frozen filesystem has written all it holds and writes
no more, and the mirror is synchronous, so whatever the guest saw completed before its freeze
returned has been received by the splitter before. The cut is ordered after that, and the splitter
refuses it once the watchdog may have thawed (`not_after_ns`, by the one monotonic clock of the
machine). So no cut says `application` of a guest that runs, however late anything is.

Invariants
* Before anything is frozen there are a durable note and a watchdog that is ready; a thaw is the
  watchdog's work alone. The note goes when the watchdog ended well: it does so only when no guest
  is frozen on our account any more, and none will be.
* `post` is run whenever `pre` was begun, behind the thaw, also after a failure, a cancellation and
  a crash (at the next start).
* One at a time in a group. The next has to wait until the watchdog of the one before is gone: a
  freeze that was given up and is carried out late would else be thawed in the middle of it.

Failure: a freeze that fails in one domain fails the whole; all domains are thawed, those too whose
freeze is not known to have been carried out. With quiesce = "try" a crash-consistent cut is made
after that. A bug, a cancellation, a kill -9: the pipe ends, and the watchdog thaws at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from agent.memory import AgentMemory, FrozenNote
from agent.quiesce.figures import QuiesceFigures
from agent.quiesce.freezer import Freezer
from agent.quiesce.guard import ThawGuard
from agent.quiesce.scripts import Phase, Script
from agent.quiesce.watch import Word
from agent.retrying.backoff import Backoff
from replicator.base.clock import NS_PER_S, Clock
from replicator.base.errors import (
    DamageError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.config.agent import GroupConfig
from replicator.control.splitter import CutKind, Marked

log = structlog.get_logger("replicator.agent.quiesce")

THAW_SECONDS = 10.0
ENDED_SECONDS = 2.0
RECOVER_AGAIN_SECONDS = 2.0
RECOVER_LIMIT_SECONDS = 10.0  # a guest may be frozen meanwhile


class FreezeError(ReplicatorError):
    """The guests could not be frozen; nothing is, and no application point was made."""


class Cut(Protocol):
    """Makes the cut with the label and the time to live of this mark."""

    def __call__(self, kind: CutKind, *, not_after_ns: int | None) -> Awaitable[Marked]: ...


class Guard(Protocol):
    """What is used of agent.quiesce.guard.ThawGuard, which says what it means."""

    ended: asyncio.Event
    exit_code: int | None

    def say(self, word: Word) -> None: ...

    def let_go(self) -> None: ...

    async def thaw(self, limit_seconds: float) -> int: ...


StartGuard = Callable[[Sequence[str]], Awaitable[Guard]]


@dataclass(frozen=True, slots=True)
class Quiesced:
    """A cut that was made, and what is to be said of it."""

    marked: Marked
    kind: CutKind
    frozen_seconds: float | None = None
    notice: str | None = None


class Quiescence:
    """Those of one group."""

    def __init__(
        self,
        config: GroupConfig,
        freezer: Freezer | None,
        memory: AgentMemory,
        clock: Clock,
        start_guard: StartGuard = ThawGuard.start,
    ) -> None:
        self.figures = QuiesceFigures()
        self._config = config
        self._freezer = freezer
        self._memory = memory
        self._clock = clock
        self._start_guard = start_guard
        self._busy = ""
        self._guard: Guard | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        limit_seconds = config.script_timeout_ns / NS_PER_S
        scripts: dict[Phase, Sequence[str]] = {
            "pre": config.quiesce_pre,
            "post": config.quiesce_post,
        }
        self._scripts = {
            phase: Script(command, config.name, phase, limit_seconds)
            for phase, command in scripts.items()
        }

    async def run(self, label: str | None, cut: Cut) -> Quiesced:
        """Raises UsageError where nobody can quiesce, FreezeError, and what `cut` raises."""
        if self._freezer is None and not any(self._scripts[p].command for p in self._scripts):
            raise UsageError(
                f"nobody can quiesce group {self._config.name!r}: driver "
                f"{self._config.driver!r} has no guest agent",
                hint="quiesce_pre and quiesce_post in the config can do it",
            )
        if self._busy:
            raise OwnedError(f"group {self._config.name!r}: {self._busy}", hint="try again later")
        self._busy = "another quiesced mark is under way"
        try:
            quiesced = await self._run(label, cut)
        except (ReplicatorError, asyncio.CancelledError):
            self.figures.outcomes["failed"] += 1
            raise
        finally:
            self._release()
        self.figures.outcomes[quiesced.kind] += 1
        return quiesced

    async def _run(self, label: str | None, cut: Cut) -> Quiesced:
        domains = () if self._freezer is None else self._freezer.domains
        try:
            if self._freezer is not None:
                await self._freezer.require_agents()
        except ReplicatorError as error:
            return await self._crash_cut(cut, error)
        self._memory.note_frozen(self._config.name, FrozenNote(domains, label))
        try:
            await self._scripts["pre"].run(label)
            quiesced = await self._freeze_and_cut(cut)
        except FreezeError as error:
            return await self._crash_cut(cut, error)
        finally:
            await self._run_post(label)
        return quiesced

    async def _crash_cut(self, cut: Cut, error: ReplicatorError) -> Quiesced:
        """What quiesce = "try" makes of a failure."""
        log.warning("not frozen", group=self._config.name, reason=str(error))
        if self._config.quiesce == "require":
            raise error
        marked = await cut("crash", not_after_ns=None)
        return Quiesced(marked, "crash", notice=f"the point is crash-consistent: {error}")

    async def _run_post(self, label: str | None) -> None:
        try:
            await self._scripts["post"].run(label)
        except ReplicatorError:
            return  # it was logged; the point is what it is

    # -- freeze, cut, thaw

    async def _freeze_and_cut(self, cut: Cut) -> Quiesced:
        freezer = self._freezer
        if freezer is None:
            return Quiesced(await cut("application", not_after_ns=None), "application")
        timeout_ns = int(self._config.freeze_timeout_ns)
        try:
            guard = await self._start_guard(freezer.watchdog(freezer.domains, timeout_ns))
        except ReplicatorError as error:
            raise FreezeError(error.message, hint=error.hint) from error
        self._guard = guard
        began_ns = self._clock.monotonic_ns()
        is_over = False
        try:
            frozen = await self._freeze(freezer, guard)
            marked = await self._cut(cut, began_ns + timeout_ns)
            thawed = await guard.thaw(THAW_SECONDS)
            is_over = True
        except ReplicatorError:
            is_over = True  # the thaw is ordered, and the pipe stays for a late `returned`
            await self._thaw_after_failure(guard)
            raise
        finally:
            if not is_over:
                guard.let_go()
            seconds = (self._clock.monotonic_ns() - began_ns) / NS_PER_S
            self.figures.note_frozen(seconds)
            log.info("frozen", group=self._config.name, seconds=seconds, domains=freezer.domains)
        await _ended_soon(guard)
        notice = None
        if frozen and not thawed:
            notice = "the guests were thawed by somebody else: the point may be crash-consistent"
            log.warning("thawed by somebody else", group=self._config.name)
        return Quiesced(marked, "application", seconds, notice)

    async def _freeze(self, freezer: Freezer, guard: Guard) -> int:
        """How many filesystems are frozen, all domains together."""
        guard.say(Word.FREEZING)
        calls = {asyncio.ensure_future(freezer.freeze(name)): name for name in freezer.domains}
        timeout_ns = int(self._config.freeze_timeout_ns)
        try:
            done, pending = await asyncio.wait(calls, timeout=timeout_ns / NS_PER_S)
        except asyncio.CancelledError:
            self._later(_tell_return(list(calls), guard))
            raise
        if pending:
            self._later(_tell_return(list(calls), guard))
            names = ", ".join(sorted(calls[call] for call in pending))
            raise FreezeError(
                f"{names} could not be frozen within freeze_timeout ({timeout_ns / NS_PER_S:g} s)"
            )
        if not any(isinstance(call.exception(), UnreachableError) for call in done):
            guard.say(Word.RETURNED)
        for call in done:
            error = call.exception()
            if isinstance(error, ReplicatorError):
                raise FreezeError(
                    f"{calls[call]} could not be frozen: {error.message}", hint=error.hint
                ) from error
        return sum(call.result() for call in done)

    async def _cut(self, cut: Cut, deadline_ns: int) -> Marked:
        left_seconds = (deadline_ns - self._clock.monotonic_ns()) / NS_PER_S
        try:
            async with asyncio.timeout(left_seconds):
                return await cut("application", not_after_ns=deadline_ns)
        except TimeoutError:
            raise UnreachableError(
                "the splitter did not cut before freeze_timeout had passed",
                hint="no application-consistent point was made",
            ) from None

    async def _thaw_after_failure(self, guard: Guard) -> None:
        """Also where `thaw` is what has failed: the watchdog may be gone."""
        try:
            await guard.thaw(THAW_SECONDS)
        except UnreachableError as error:
            log.error("not thawed yet", group=self._config.name, reason=str(error))

    # -- afterwards

    def _release(self) -> None:
        guard, self._guard = self._guard, None
        if guard is None or guard.exit_code == 0:
            self._memory.forget_frozen(self._config.name)
            self._busy = ""
        else:
            self._busy = "the thaw of an earlier quiesced mark is not over"
            self._later(self._see_off(guard))

    async def _see_off(self, guard: Guard) -> None:
        await guard.ended.wait()
        if guard.exit_code:
            log.error("the thaw watchdog was lost", group=self._config.name, code=guard.exit_code)
            await self._thaw_anew(self._noted_domains())
        self._memory.forget_frozen(self._config.name)
        self._busy = ""

    async def recover(self) -> None:
        """At the start: thaws what an agent before may have left frozen, and runs its `post`."""
        try:
            note = self._memory.frozen(self._config.name)
        except DamageError as error:
            log.error("whom to thaw is not known", group=self._config.name, reason=str(error))
            self._busy = error.message
            return
        if note is None:
            return
        log.warning("thawing after an unclean end", group=self._config.name, domains=note.domains)
        self._busy = "the guests are thawed after an unclean end of the agent"
        await self._thaw_anew(note.domains, post_label=note.label, is_post_due=True)
        self._memory.forget_frozen(self._config.name)
        self._busy = ""

    def _noted_domains(self) -> Sequence[str]:
        note = self._memory.frozen(self._config.name)
        return () if note is None else note.domains

    async def _thaw_anew(
        self, domains: Sequence[str], *, post_label: str | None = None, is_post_due: bool = False
    ) -> None:
        """Returns when no guest is frozen on our account, and none will be."""
        tries = Backoff(RECOVER_AGAIN_SECONDS, RECOVER_LIMIT_SECONDS)
        while domains and self._freezer is not None:
            command = self._freezer.watchdog(domains, int(self._config.freeze_timeout_ns))
            try:
                guard = await self._start_guard(command)
                guard.say(Word.FREEZING)  # one of before may still be on its way
                guard.let_go()
                await guard.thaw(THAW_SECONDS)
            except ReplicatorError as error:
                log.warning("not thawed yet", group=self._config.name, reason=str(error))
                now = asyncio.get_running_loop().time()
                await asyncio.sleep(tries.failed(str(error), now))
                continue
            break
        if is_post_due:
            await self._run_post(post_label)
        if domains and self._freezer is not None:
            await guard.ended.wait()

    def _later(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """The agent ends: what waits for a watchdog is left to the next start."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _ended_soon(guard: Guard) -> None:
    """The usual end takes milliseconds, and the next mark need not be refused for them."""
    with suppress(TimeoutError):
        async with asyncio.timeout(ENDED_SECONDS):
            await guard.ended.wait()


async def _tell_return(calls: Sequence[asyncio.Future[int]], guard: Guard) -> None:
    """Once nothing of any freeze is on its way any more."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    if not any(isinstance(result, UnreachableError | asyncio.CancelledError) for result in results):
        guard.say(Word.RETURNED)
