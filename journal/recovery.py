# SPDX-License-Identifier: Apache-2.0
"""What the end of a log means after a crash: a decision table. No I/O.

An un-synced entry survives a power cut or not, each sector on its own. So a bad entry near the end
is what a crash leaves, even with good entries behind it; the same bad entry further up is rot.
What tells them apart is written in the log itself: each entry and each segment header states up
to where the log was durable (synced) when it was written, and a seal says it of its segment.

    bad below the highest such statement         damage: it had been on the disk
    bad at or above it                           a torn tail: cut at the first bad entry
    the log ends before what was acknowledged    a gap: never normal, whatever the log itself says

The last line needs a witness from outside (the receiver's history knows what was applied, an
agent what was acknowledged). Without one, rot in the last group that was synced looks like a torn
tail: nothing later states that the group was durable. That is why a cut is never silent, and
why what depends on it (a resume, an incomplete batch) is compared before it is believed.

`facts` are gathered by journal.survey, and the verdict is carried out by journal.reopen. The test
enumerates every situation and finds exactly one case for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """Why the unbroken run of good entries ends."""

    NONE = "none"  # the log ends there, at the end of an entry
    TORN = "torn"  # bytes are missing: more of them could have made the entry whole
    BAD = "bad"  # bytes are there, and they are not the entry's


class Witness(Enum):
    """What was acknowledged, compared with the end of the unbroken run."""

    ABSENT = "absent"
    HELD = "held"  # all of it is in the run
    BROKEN = "broken"  # the run ends before it


@dataclass(frozen=True, slots=True)
class TailFacts:
    """What was found. `end_lsn` is behind the last good entry of the unbroken run.

    `last`: it ends in the last segment. `sealed`: it ends in a segment that was sealed.
    `good_behind`: whole entries stand behind the fault. `known_durable` is the highest statement
    anywhere in the log, behind the fault too. `acknowledged` is what was promised, if known.
    """

    end_lsn: int
    fault: Fault
    last: bool
    sealed: bool
    good_behind: bool
    known_durable: int
    acknowledged: int | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """The facts as far as they decide."""

    fault: Fault
    last: bool
    sealed: bool
    good_behind: bool
    below_statement: bool
    witness: Witness

    @property
    def is_possible(self) -> bool:
        """A log without a fault ends in its last segment with nothing behind it, and a file that
        ends in the middle of an entry has nothing behind it unless another segment follows."""
        if self.fault is Fault.NONE:
            return self.last and not self.good_behind
        return not (self.fault is Fault.TORN and self.last and self.good_behind)


class Action(Enum):
    KEEP = "keep"  # the log is whole
    CUT = "cut"  # drop everything from end_lsn on, then go on there
    STOP = "stop"  # touch nothing, tell a person


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    label: str
    action: Action
    prose: str
    fits: Callable[[Situation], bool]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do, and at which LSN."""

    label: str
    action: Action
    prose: str
    end_lsn: int


def _whole(s: Situation) -> bool:
    return s.fault is Fault.NONE


def _torn_tail(s: Situation) -> bool:
    """A fault that a crash explains."""
    return not (_whole(s) or s.sealed or s.below_statement or s.witness is Witness.BROKEN)


CASES = (
    Case(
        "clean",
        Action.KEEP,
        "every entry up to the end is good",
        lambda s: (
            _whole(s) and not s.sealed and not s.below_statement and s.witness is not Witness.BROKEN
        ),
    ),
    Case(
        "sealed",
        Action.KEEP,
        "every entry is good and the last segment is sealed: the next entry opens a new one",
        lambda s: (
            _whole(s) and s.sealed and not s.below_statement and s.witness is not Witness.BROKEN
        ),
    ),
    Case(
        "missing end",
        Action.STOP,
        "the entries are good, but the log once reached further, and that part was durable or "
        "acknowledged: a file is missing, or an older copy was put in its place",
        lambda s: _whole(s) and (s.below_statement or s.witness is Witness.BROKEN),
    ),
    Case(
        "torn at the end",
        Action.CUT,
        "the file ends inside an entry that was not yet durable",
        lambda s: _torn_tail(s) and s.last and s.fault is Fault.TORN,
    ),
    Case(
        "lost sectors at the end",
        Action.CUT,
        "the last entries were not yet durable and did not all arrive on the disk",
        lambda s: _torn_tail(s) and s.last and s.fault is Fault.BAD and not s.good_behind,
    ),
    Case(
        "survivors behind a lost entry",
        Action.CUT,
        "of entries that were not yet durable, some arrived and an earlier one did not",
        lambda s: _torn_tail(s) and s.last and s.fault is Fault.BAD and s.good_behind,
    ),
    Case(
        "torn before the last segment",
        Action.CUT,
        "entries that were not yet durable are lost, and later segments hold nothing durable",
        lambda s: _torn_tail(s) and not s.last,
    ),
    Case(
        "damage in a sealed segment",
        Action.STOP,
        "the segment was whole when it was sealed",
        lambda s: not _whole(s) and s.sealed,
    ),
    Case(
        "damage below the durable mark",
        Action.STOP,
        "the log says that this part had been durable",
        lambda s: not _whole(s) and not s.sealed and s.below_statement,
    ),
    Case(
        "damage below what was acknowledged",
        Action.STOP,
        "this part was acknowledged, so it had been durable",
        lambda s: (
            not _whole(s) and not s.sealed and not s.below_statement and s.witness is Witness.BROKEN
        ),
    ),
)


def situation_of(facts: TailFacts) -> Situation:
    if facts.acknowledged is None:
        witness = Witness.ABSENT
    elif facts.end_lsn < facts.acknowledged:
        witness = Witness.BROKEN
    else:
        witness = Witness.HELD
    return Situation(
        facts.fault,
        facts.last,
        facts.sealed,
        facts.good_behind,
        facts.end_lsn < facts.known_durable,
        witness,
    )


def classify_tail(facts: TailFacts) -> Verdict:
    """The one case that fits."""
    situation = situation_of(facts)
    assert situation.is_possible, situation
    (case,) = (case for case in CASES if case.fits(situation))
    return Verdict(case.label, case.action, case.prose, facts.end_lsn)
