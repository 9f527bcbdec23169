# SPDX-License-Identifier: Apache-2.0
"""When the watchdog thaws and when it goes: no guest is left frozen by any order of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.quiesce.watch import AGAIN_NS, LATE_FREEZE_NS, Watch, Word

SECOND = 1_000_000_000
LIMIT = 10 * SECOND


def armed(*domains: str) -> Watch:
    watch = Watch(domains or ("a",), LIMIT)
    watch.hear(Word.FREEZING, 100)
    return watch


def test_an_agent_that_goes_before_the_freeze_leaves_nothing_to_do() -> None:
    watch = Watch(["a"], LIMIT)
    assert watch.due_ns is None
    watch.hear(Word.GONE, 5)
    assert watch.done
    assert watch.round == 0


def test_the_orderly_way_is_one_round() -> None:
    watch = armed("a", "b")
    watch.hear(Word.RETURNED, 200)
    assert watch.round == 0
    watch.hear(Word.THAW, 300)
    assert watch.round == 1
    assert not watch.thawed("b", 1, 400)
    assert watch.thawed("a", 2, 500)
    assert watch.done
    assert watch.filesystems == 3


def test_the_deadline_thaws() -> None:
    watch = armed()
    watch.hear(Word.RETURNED, 200)
    assert watch.due_ns == 100 + LIMIT
    watch.tick(99 + LIMIT)
    assert watch.round == 0
    watch.tick(100 + LIMIT)
    assert watch.round == 1
    assert "freeze_timeout" in watch.why


def test_a_dead_agent_thaws_at_once() -> None:
    watch = armed()
    watch.hear(Word.RETURNED, 200)
    watch.hear(Word.GONE, 300)
    assert watch.round == 1
    watch.thawed("a", 1, 400)
    assert watch.done


def test_a_freeze_that_is_still_on_its_way_is_thawed_after() -> None:
    """The agent died, or gave up waiting: libvirt may carry the freeze out all the same."""
    watch = armed()
    watch.hear(Word.GONE, 300)
    now = 400
    while not watch.done:
        watch.thawed("a", 0, now)
        assert watch.due_ns in (None, now + AGAIN_NS)
        now += AGAIN_NS
        watch.tick(now)
    assert now >= 100 + LATE_FREEZE_NS


def test_once_the_freeze_has_returned_one_more_thaw_is_enough() -> None:
    watch = armed()
    watch.hear(Word.THAW, 200)
    watch.thawed("a", 0, 300)
    assert not watch.done
    watch.hear(Word.RETURNED, 400)
    assert watch.round == 2
    watch.thawed("a", 1, 500)
    assert watch.done


def test_a_thaw_that_began_before_the_freeze_returned_does_not_count() -> None:
    watch = armed()
    watch.hear(Word.THAW, 200)
    watch.hear(Word.RETURNED, 300)  # the thaw of 200 may have been carried out before the freeze
    watch.thawed("a", 0, 400)
    assert not watch.done
    assert watch.round == 2
    watch.thawed("a", 1, 500)
    assert watch.done


@given(
    words=st.lists(st.sampled_from([Word.RETURNED, Word.THAW, Word.GONE, None]), max_size=8),
    freeze_at=st.integers(0, 12),
    early=st.booleans(),
)
def test_whatever_happens_the_last_thing_done_to_a_frozen_guest_is_a_thaw(
    words: list[Word | None], freeze_at: int, *, early: bool
) -> None:
    """The freeze is carried out at some step: before its return, if the agent lives to see one.
    A thaw is carried out a step before it is known to be (`early`), or in that same step."""
    watch = Watch(["a"], LIMIT)
    watch.hear(Word.FREEZING, 0)
    now, frozen, carried_out, running = 0, False, False, 0
    steps: list[Word | None] = [*words, Word.GONE]
    for step in range(200):
        now += SECOND
        word = steps[step] if step < len(steps) else None
        if not carried_out and (step >= freeze_at or word is Word.RETURNED):
            frozen = carried_out = True
        if word is not None and not watch.done:
            watch.hear(word, now)
        watch.tick(now)
        if running and running == watch.round and not watch.done:
            watch.thawed("a", int(frozen), now)
            running, frozen = 0, frozen and early
        if watch.round and not watch.done and running != watch.round:
            running, frozen = watch.round, frozen and not early
        if watch.done:
            break
    assert watch.done
    assert carried_out
    assert not frozen
