# SPDX-License-Identifier: Apache-2.0
"""Whether a group's source has come to its end, and in which way. No I/O.

The splitter sees the mirrors, libvirt the domains, and neither sees both. A guest that powers off
says goodbye to the splitter up to 2 s before libvirt says that it is off. So:

* **An answer is never older than the question.** What libvirt says of a sign was asked after the
  sign; what the splitter says of libvirt's answer was said after the answer. An answer that is too
  old for a decision is waited for, or asked for, again.
* **An end is waited for**: a suspended group whose domains run waits for the event that says what
  the sign was, WAIT_NS at the most.
* **An old observation is never stamped with the present.** A final cut is made only of an end that
  was watched (libvirt_watch): the stop was heard of on one connection since before the first sign,
  no start was, and SETTLE_NS have passed since libvirt was asked, so that no event that was sent
  before its answer is still on its way. An end that was not watched is no point, and no loss.

    splitter    domains           watched, and            →
    suspended   all off           stop heard, settled     close, final cut
    suspended   all off           stop not heard of yet   wait; after WAIT_NS: close, unwatched
    suspended   all off           no                      close, unwatched
    suspended   some off          –                       wait; after WAIT_NS: close, lost
    suspended   all run           paused or started       close, lost
    suspended   all run           –                       wait; after WAIT_NS: close, lost
    ready       some off          –                       wait for the sign; after WAIT_NS: lost
    syncing     some off          –                       close, lost
    no stream   some off          –                       wait until they run

"No such domain" is a fact like any other: it does not run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agent.drivers.libvirt.plan import Close, Step, Wait
from agent.drivers.libvirt.watch import Watch
from replicator.control.splitter import SplitterGroupStatus
from replicator.states.words import NO_TROUBLE, Trouble

WAIT_NS: Final = 10_000_000_000
SETTLE_NS: Final = 200_000_000
NEXT_WORD: Final = "the splitter's next word is awaited"


@dataclass(frozen=True, slots=True)
class DomainFacts:
    """`known`: libvirt has such a domain. One that is paused runs."""

    name: str
    running: bool
    known: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """What libvirt said of all domains of a group, and when it was asked and had answered.
    `down_ns`: since when it has said that one of them is off; 0: none is."""

    domains: tuple[DomainFacts, ...]
    asked_ns: int
    answered_ns: int
    down_ns: int = 0


def is_answer(group: SplitterGroupStatus, reading: Reading) -> bool:
    """Whether the splitter said this after libvirt had answered: nothing is closed otherwise."""
    return group.said_ns >= reading.answered_ns


def end_step(
    group: SplitterGroupStatus, reading: Reading, watch: Watch, now_ns: int
) -> Step | None:
    """What the end of the source asks for; None if it has not come."""
    down = [domain for domain in reading.domains if not domain.running]
    if group.state not in ("syncing", "ready", "suspended"):
        return Wait(_why_down(down)) if down else None
    if group.state != "suspended" and not down:
        return None
    if not is_answer(group, reading):
        return Wait(NEXT_WORD)
    if group.state == "suspended":
        if reading.asked_ns <= group.sign_ns:
            return Wait("libvirt's next word is awaited")
        return _suspended(group, reading, watch, now_ns)
    names = _names(down)
    if group.state == "syncing":
        return Close(f"{names} ended in the middle of a sync", final_cut=False)
    if now_ns - reading.down_ns < WAIT_NS:
        return Wait(f"{names} is off; its mirrors have not said goodbye yet")
    return Close(f"{names} ended without the goodbye of a clean shutdown", final_cut=False)


def _suspended(group: SplitterGroupStatus, reading: Reading, watch: Watch, now_ns: int) -> Step:
    up = [domain for domain in reading.domains if domain.running]
    down = [domain for domain in reading.domains if not domain.running]
    waited = now_ns - group.sign_ns >= WAIT_NS
    if not down:
        for domain in up:
            if watch.paused_since(domain.name, group.sign_ns):
                return Close(
                    f"{domain.name} was paused, which looks like the end of its mirrors",
                    final_cut=False,
                )
            if watch.started_since(domain.name, group.sign_ns):
                return Close(f"{domain.name} was started again", final_cut=False)
        if waited:
            return Close("the mirror ended while the domain goes on", final_cut=False)
        return Wait("a mirror may have ended; libvirt is to say what that was")
    if up:
        if waited:
            return Close(f"{_names(down)} is off, {_names(up)} runs on", final_cut=False)
        return Wait(f"{_names(down)} is off, {_names(up)} still runs")
    off = f"shut off: {_names(down)}"
    if not watch.watches(group.stream):
        return Close(f"{off}; the end was not watched", final_cut=False, unwatched=True)
    if all(watch.stopped_once(domain.name) for domain in down):
        if now_ns - reading.asked_ns < SETTLE_NS:
            return Wait(f"{off}; its last point is being made")
        return Close(off, final_cut=True)
    if any(watch.started_since(domain.name, group.sign_ns) for domain in down) or waited:
        return Close(f"{off}; the end was not watched", final_cut=False, unwatched=True)
    return Wait(f"{off}; libvirt's event of it is awaited")


def _why_down(down: list[DomainFacts]) -> str:
    off = [domain for domain in down if domain.known]
    unknown = [domain for domain in down if not domain.known]
    words = [f"not running: {_names(off)}"] if off else []
    if unknown:
        words.append(f"libvirt knows no domain {_names(unknown)}; `virsh list --all` shows all")
    return "; ".join(words)


def _names(domains: Iterable[DomainFacts]) -> str:
    return ", ".join(sorted(domain.name for domain in domains))


def left_out(disks: Iterable[tuple[str, str]], domains: Iterable[DomainFacts]) -> Trouble:
    """The disks, as (domain, disk), that run unprotected because a domain beside theirs is off: a
    group is cut as a whole, so it is protected as a whole."""
    facts = list(domains)
    down = [domain for domain in facts if not domain.running]
    up = {domain.name for domain in facts if domain.running}
    beside = [disk for domain, disk in disks if domain in up]
    if not down or not beside:
        return NO_TROUBLE
    off = _names(down)
    return Trouble(
        f"not protected, though they run: {', '.join(beside)}; {_why_down(down)}, and a group is"
        " protected as a whole",
        f"start {off}, or take its disks out of the group and run: replicator reload",
    )
