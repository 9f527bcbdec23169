# SPDX-License-Identifier: Apache-2.0
"""The decision table: every situation has exactly one case, and the ones that matter the right."""

from __future__ import annotations

from itertools import product

import pytest

from journal.recovery import CASES, Action, Fault, Situation, TailFacts, Witness, classify_tail

SITUATIONS = [
    Situation(fault, last, sealed, behind, below, witness)
    for fault, witness in product(Fault, Witness)
    for last, sealed, behind, below in product((False, True), repeat=4)
]
POSSIBLE = [situation for situation in SITUATIONS if situation.is_possible]


def test_every_possible_situation_has_exactly_one_case_and_every_case_is_needed() -> None:
    assert len(SITUATIONS) == 3 * 2**4 * 3
    used = set()
    for situation in POSSIBLE:
        fitting = [case.label for case in CASES if case.fits(situation)]
        assert len(fitting) == 1, (situation, fitting)
        used.update(fitting)
    assert used == {case.label for case in CASES}


def action_of(situation: Situation) -> Action:
    (case,) = (case for case in CASES if case.fits(situation))
    return case.action


def test_nothing_below_a_statement_or_an_acknowledgement_is_ever_cut_or_kept() -> None:
    for situation in POSSIBLE:
        if situation.below_statement or situation.witness is Witness.BROKEN:
            assert action_of(situation) is Action.STOP, situation


def test_what_a_power_cut_can_leave_is_never_damage() -> None:
    for situation in POSSIBLE:
        explained = not (
            situation.sealed or situation.below_statement or situation.witness is Witness.BROKEN
        )
        if situation.fault is not Fault.NONE and explained:
            assert action_of(situation) is Action.CUT, situation


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        (TailFacts(90, Fault.NONE, True, False, False, 90, 90), "clean"),
        (TailFacts(90, Fault.NONE, True, True, False, 50), "sealed"),
        (TailFacts(90, Fault.NONE, True, False, False, 50, 91), "missing end"),
        (TailFacts(90, Fault.TORN, True, False, False, 90, 90), "torn at the end"),
        (TailFacts(90, Fault.BAD, True, False, False, 0), "lost sectors at the end"),
        (TailFacts(90, Fault.BAD, True, False, True, 90), "survivors behind a lost entry"),
        (TailFacts(90, Fault.TORN, False, False, True, 90), "torn before the last segment"),
        (TailFacts(90, Fault.BAD, False, True, True, 0), "damage in a sealed segment"),
        (TailFacts(90, Fault.BAD, True, False, True, 91), "damage below the durable mark"),
        (
            TailFacts(90, Fault.TORN, True, False, False, 0, 91),
            "damage below what was acknowledged",
        ),
    ],
)
def test_each_case_by_its_figures(facts: TailFacts, label: str) -> None:
    verdict = classify_tail(facts)
    assert verdict.label == label
    assert verdict.end_lsn == 90
    assert verdict.prose
