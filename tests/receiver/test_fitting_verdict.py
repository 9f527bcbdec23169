# SPDX-License-Identifier: Apache-2.0
"""What follows from how a group's parts fit: every situation, and exactly one case for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest

from receiver.fitting.verdict import (
    FINE,
    FOLDERS,
    HISTORY,
    IMAGE,
    INBOX,
    SUMS,
    TAIL,
    Action,
    Case,
    judge,
)
from receiver.points.evidence import Evidence, ImageState, InboxState, Line

TABLES: tuple[Sequence[Case[Any]], ...] = (HISTORY, IMAGE, INBOX, SUMS, FINE, FOLDERS, TAIL)
FLAGS = ("is_empty", "was_vouched", "seen_beyond", "holds_newer", "sums_beyond", "fine_beyond")


def situations() -> Iterator[Evidence]:
    for line in Line:
        for flags in product((False, True), repeat=len(FLAGS)):
            said: dict[str, Any] = dict(zip(FLAGS, flags, strict=True))
            yield Evidence(line, **said)
            yield Evidence(line, foreign="inbox", **said)
            yield Evidence(line, tail="it was whole", **said)


def fitting(cases: Sequence[Case[Any]], facts: object) -> list[str]:
    return [case.label for case in cases if case.fits(facts)]


@pytest.mark.parametrize("cases", [HISTORY, SUMS, FINE, FOLDERS, TAIL])
def test_every_situation_has_exactly_one_case(cases: Sequence[Case[Any]]) -> None:
    found = [fitting(cases, each) for each in situations()]
    assert all(len(each) == 1 for each in found)
    assert {each[0] for each in found} == {case.label for case in cases}, "a case that never fits"


def test_every_image_and_every_inbox_has_exactly_one_case() -> None:
    assert [len(fitting(IMAGE, state)) for state in ImageState] == [1] * len(IMAGE)
    assert [len(fitting(INBOX, state)) for state in InboxState] == [1] * len(INBOX)


def test_labels_are_unique() -> None:
    labels = [case.label for cases in TABLES for case in cases]
    assert len(labels) == len(set(labels))


def test_nothing_goes_on_against_what_the_replica_says() -> None:
    for each in situations():
        if each.line in (Line.BEYOND, Line.OTHER, Line.FOREIGN):
            assert judge(each).stops, each


def test_without_the_replicas_word_nothing_goes_on_against_the_others() -> None:
    for each in situations():
        if each.line is Line.ABSENT and not each.is_empty:
            assert bool(judge(each).stops) is (
                each.seen_beyond
                or each.holds_newer
                or each.sums_beyond
                or each.foreign + each.tail != ""
            ), each


def test_a_whole_folder_that_was_set_back_goes_on() -> None:
    verdict = judge(Evidence(Line.HELD, seen_beyond=True))
    assert judge(Evidence(Line.HELD, seen_beyond=True, holds_newer=True)).stops
    assert not verdict.stops
    assert [each.label for each in verdict.of(Action.MEND)] == ["set back"]


def test_another_groups_folder_cannot_be_accepted() -> None:
    assert [each.acceptable for each in judge(Evidence(Line.FOREIGN)).stops] == [False]


def test_every_stop_says_what_would_set_it_right() -> None:
    for cases in TABLES:
        for case in cases:
            assert (case.action is Action.STOP) is bool(case.put_back), case.label
