# SPDX-License-Identifier: Apache-2.0
"""Whether a source has ended, and how: each row of the table, and every order of what is heard."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.drivers.libvirt.end import SETTLE_NS, WAIT_NS, DomainFacts, Reading, end_step, left_out
from agent.drivers.libvirt.events import IoError, Lifecycle, Turn
from agent.drivers.libvirt.plan import Close, Step, Wait
from agent.drivers.libvirt.watch import Watch
from replicator.control.splitter import GroupState, LatencyStatus, SplitterGroupStatus
from replicator.states.words import NO_TROUBLE

SECOND = 1_000_000_000
GROUP = SplitterGroupStatus(
    name="g",
    state="ready",
    reason="",
    stream="s1",
    ordinal=1,
    first_lsn=0,
    end_lsn=0,
    last_cut_time_ns=0,
    held_until_ns=0,
    disks=[],
    memory_bytes=0,
    disk_bytes=0,
    latency=LatencyStatus(bounds_us=[], counts=[0], sum_us=0, count=0),
    requests=0,
    bytes=0,
)


@dataclass
class Host:
    """Splitter, libvirt and the driver's watch, on one clock. A second passes between events."""

    now_ns: int = 100 * SECOND
    running: dict[str, bool] = field(default_factory=lambda: {"d": True})
    known: bool = True
    sign_ns: int = 0
    state: GroupState = "ready"
    watch: Watch = field(default_factory=Watch)
    reading: Reading | None = None
    down_ns: int = 0

    def watched(self) -> Host:
        self.watch.connected(self.now_ns)
        self.passes()
        self.watch.said_live("s1", self.now_ns)
        self.passes()
        return self

    def passes(self, nanoseconds: int = SECOND) -> None:
        self.now_ns += nanoseconds

    def sign(self) -> None:
        self.state, self.sign_ns = "suspended", self.now_ns
        self.passes(SECOND // 100)

    def turns(self, turn: Turn, domain: str = "d", *, heard: bool = True) -> None:
        self.running[domain] = turn is not Turn.STOPPED
        self.passes(SECOND // 100)
        if heard:
            self.watch.heard(domain, Lifecycle(turn), self.now_ns)
            self.passes(SECOND // 100)

    def read(self) -> None:
        asked_ns = self.now_ns
        self.passes(SECOND // 100)
        domains = tuple(
            DomainFacts(name, running=runs, known=self.known or runs)
            for name, runs in self.running.items()
        )
        if all(self.running.values()):
            self.down_ns = 0
        else:
            self.down_ns = self.down_ns or self.now_ns
        self.reading = Reading(domains, asked_ns, self.now_ns, self.down_ns)
        self.passes(SECOND // 100)

    def status(self, *, said_ns: int | None = None) -> SplitterGroupStatus:
        return msgspec.structs.replace(
            GROUP,
            state=self.state,
            sign_ns=self.sign_ns if self.state == "suspended" else 0,
            said_ns=self.now_ns if said_ns is None else said_ns,
        )

    def step(self, *, said_ns: int | None = None) -> Step | None:
        assert self.reading is not None
        return end_step(self.status(said_ns=said_ns), self.reading, self.watch, self.now_ns)

    def settled(self) -> Step | None:
        self.read()
        self.passes(SETTLE_NS)
        return self.step()


def is_final(step: Step | None) -> bool:
    return isinstance(step, Close) and step.final_cut


def is_unwatched(step: Step | None) -> bool:
    return isinstance(step, Close) and step.unwatched and not step.final_cut


def is_loss(step: Step | None) -> bool:
    return isinstance(step, Close) and not step.final_cut and not step.unwatched


def test_a_group_that_runs_is_left_to_the_plan() -> None:
    host = Host().watched()
    host.read()
    assert host.step() is None
    host.state = "lost"
    assert host.step() is None


def test_a_watched_end_is_a_final_cut() -> None:
    host = Host().watched()
    host.sign()
    host.turns(Turn.STOPPED)
    host.read()
    assert isinstance(host.step(), Wait), "an event that came before the answer may be under way"
    host.passes(SETTLE_NS)
    assert host.step() == Close("shut off: d", final_cut=True)


def test_the_event_may_come_before_the_splitter_has_seen_the_sign() -> None:
    host = Host().watched()
    host.turns(Turn.STOPPED)
    host.sign()
    assert is_final(host.settled())


def test_an_answer_is_never_older_than_the_question() -> None:
    host = Host().watched()
    host.read()  # "it runs", up to FACTS_AGE old when the sign comes
    host.sign()
    host.passes(2 * WAIT_NS)
    assert isinstance(host.step(), Wait), "libvirt was asked before the sign"
    host = Host().watched()
    said_ns = host.now_ns
    host.turns(Turn.STOPPED)
    host.read()
    host.passes(2 * WAIT_NS)
    assert isinstance(host.step(said_ns=said_ns), Wait), "the splitter spoke before libvirt did"


def test_a_suspended_group_that_runs_waits_for_libvirts_word() -> None:
    host = Host().watched()
    host.sign()
    host.read()
    assert isinstance(host.step(), Wait)
    host.turns(Turn.STOPPED)
    assert is_final(host.settled())
    host = Host().watched()
    host.sign()
    host.passes(WAIT_NS)
    host.read()
    assert host.step() == Close("the mirror ended while the domain goes on")


@pytest.mark.parametrize("turn", [Turn.PAUSED, Turn.STARTED])
def test_a_domain_that_was_paused_or_started_needs_no_waiting(turn: Turn) -> None:
    host = Host().watched()
    host.sign()
    host.turns(turn)
    host.read()
    assert is_loss(host.step())


def test_a_second_run_that_was_seen_is_no_final_cut() -> None:
    host = Host().watched()
    host.sign()
    for turn in (Turn.STOPPED, Turn.STARTED, Turn.STOPPED):
        host.turns(turn)
    assert is_unwatched(host.settled())


@pytest.mark.parametrize("gap", ["a new process", "a new connection", "no connection"])
def test_an_end_that_nobody_watched_is_none(gap: str) -> None:
    host = Host().watched()
    host.sign()
    if gap == "a new process":
        host.watch = Watch()
    else:
        host.watch.disconnected()
    if gap != "no connection":
        host.watch.connected(host.now_ns)
    host.turns(Turn.STOPPED, heard=False)
    step = host.settled()
    assert is_unwatched(step)
    assert isinstance(step, Close)
    assert "the end was not watched" in step.reason


def test_a_word_from_before_the_connection_begins_no_watch() -> None:
    host = Host()
    said_ns = host.now_ns
    host.passes()
    host.watch.connected(host.now_ns)
    host.watch.said_live("s1", said_ns)
    assert not host.watch.watches("s1")
    host.watch.said_live("s1", host.now_ns + 1)
    assert host.watch.watches("s1")
    assert not host.watch.watches("s2")


def test_a_stop_that_is_never_heard_of_is_waited_for_and_then_unwatched() -> None:
    host = Host().watched()
    host.sign()
    host.turns(Turn.STOPPED, heard=False)
    host.read()
    assert isinstance(host.step(), Wait)
    host.passes(WAIT_NS)
    assert is_unwatched(host.step())


def test_all_domains_of_a_group_end_together_or_it_is_lost() -> None:
    host = Host(running={"d": True, "e": True}).watched()
    host.sign()
    host.turns(Turn.STOPPED, "d")
    host.read()
    assert isinstance(host.step(), Wait)
    host.turns(Turn.STOPPED, "e")
    assert is_final(host.settled())
    host = Host(running={"d": True, "e": True}).watched()
    host.sign()
    host.turns(Turn.STOPPED, "d")
    host.passes(WAIT_NS)
    host.read()
    assert host.step() == Close("d is off, e runs on")


def test_a_domain_that_is_off_without_a_sign() -> None:
    host = Host().watched()
    host.turns(Turn.STOPPED)
    host.read()
    assert isinstance(host.step(), Wait), "the goodbye may lie unread at the splitter"
    host.passes(WAIT_NS)
    assert is_loss(host.step())
    host.state = "syncing"
    assert is_loss(host.step())


def test_without_a_stream_it_is_said_what_does_not_run_and_what_is_unknown() -> None:
    host = Host(running={"d": False, "e": True}, state="closed")
    host.read()
    assert host.step() == Wait("not running: d")
    host.known = False
    host.read()
    assert host.step() == Wait("libvirt knows no domain d; `virsh list --all` shows all")


@dataclass
class Life(Host):
    """A host to which anything may happen. `ran_unseen`: the domain was started after the end of
    the run that was mirrored."""

    linked: bool = True
    ran_unseen: bool = False

    def happens(self, what: str) -> None:
        getattr(self, f"_{what}")()
        if self.state == "ready" and self.linked:
            self.watch.said_live("s1", self.now_ns)
        self.passes()

    def _stop(self) -> None:
        if self.running["d"]:
            self.turns(Turn.STOPPED, heard=self.linked)

    def _start(self) -> None:
        if not self.running["d"]:
            if self.state == "ready":
                self.sign()  # the splitter sees the end of a run before the next one begins
            self.turns(Turn.STARTED, heard=self.linked)
            self.ran_unseen = True

    def _pause(self) -> None:
        if self.running["d"] and self.linked:
            self.watch.heard("d", Lifecycle(Turn.PAUSED), self.now_ns)

    def _sign(self) -> None:
        if self.state == "ready":
            self.sign()

    def _wait(self) -> None:
        self.passes(WAIT_NS // 2)

    def _unlink(self) -> None:
        self.watch.disconnected()
        self.linked = False

    def _link(self) -> None:
        self.watch.connected(self.now_ns)
        self.linked = True

    def _restart(self) -> None:
        self.watch = Watch()
        self._link()


@given(
    st.lists(
        st.sampled_from(("stop", "start", "pause", "sign", "wait", "unlink", "link", "restart")),
        max_size=14,
    )
)
def test_no_final_cut_of_a_source_that_ran_unseen(life: list[str]) -> None:
    """Whatever is heard, missed and asked on the way."""
    host = Life()
    host.watched()
    for what in life:
        host.happens(what)
        host.read()
        host.passes(SETTLE_NS)
        if is_final(host.step()):
            assert not host.ran_unseen
            assert not host.running["d"]


def test_errors_are_kept_over_connections_until_the_next_stream() -> None:
    watch = Watch()
    watch.connected(1)
    for action in ("none", "pause", "report"):
        watch.heard("d", IoError("", "", action), 2)
    watch.disconnected()
    watch.connected(3)
    assert [error.action for _, error in watch.errors] == ["none", "report"]
    watch.begin_stream()
    assert watch.errors == []


def test_disks_that_run_beside_a_domain_that_is_off_are_named() -> None:
    disks = [("a", "a-vda"), ("b", "b-vda"), ("b", "b-vdb"), ("c", "c-vda")]
    on, off, gone = DomainFacts("a", True), DomainFacts("b", False), DomainFacts("c", False, False)
    told = left_out(disks, [on, off, gone])
    assert told.reason.startswith("not protected, though they run: a-vda; not running: b;")
    assert "libvirt knows no domain c" in told.reason
    assert "start b, c, or take its disks out of the group" in told.remedy
    assert left_out(disks, [DomainFacts(name, True) for name in "abc"]) == NO_TROUBLE
    assert left_out(disks, [DomainFacts(name, False) for name in "abc"]) == NO_TROUBLE
