# SPDX-License-Identifier: Apache-2.0
"""What stands behind a bad entry: good ones, and the durability that they state. No I/O.

Behind a bad entry the chain is lost, so good ones must be found again. A header counts as good
* if its chain goes on from that of the bad entry, as its header stores it or as it should be
  (so a flipped bit, wherever it is, does not hide the entry that follows); or
* if the header behind it goes on from its chain: two that agree are no accident.

From there on the run is scanned as ever. Stale bytes of a recycled block may form such a run too;
a statement counts only if it lies between the last one before the fault and the place where it
stands, which stale ones hardly do. A guest could write blocks that look like a run; to be
believed they would have to state an LSN just written, and would gain a stop of the guest's own
group after a power cut, never a wrong point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from journal.format import EntryFormat

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Behind:
    """How many good entries stand behind the fault, and the highest LSN that they state."""

    entries: int
    known_durable: int


def survey_behind(
    form: EntryFormat[E], data: bytes, start_lsn: int, chain: int, known_durable: int
) -> Behind:
    """`data` is the rest of a segment from a bad entry at `start_lsn` on, `chain` the chain in
    front of that entry, `known_durable` the highest statement so far."""
    entries = 0
    highest = known_durable
    at = 0  # of the entry that is bad
    seed = chain
    while True:
        found = next_good(form, data, at, seed)
        if found is None:
            return Behind(entries, highest)
        at, seed = found
        run = form.scan(memoryview(data)[at:], start_lsn + at, seed)
        for lsn, entry in run.records:
            stated = form.known_durable(entry)
            if known_durable <= stated <= lsn:
                highest = max(highest, stated)
        entries += len(run.records)
        if not run.problem:
            return Behind(entries, highest)
        at, seed = run.end_lsn - start_lsn, run.chain


def next_good(form: EntryFormat[E], data: bytes, bad: int, seed: int) -> tuple[int, int] | None:
    """(offset, chain before it) of the first good entry behind the bad one."""
    seeds: tuple[int, ...] = ()
    size = form.stated_bytes(data, bad)
    if size:
        seeds = (form.stored_chain(data, bad), form.computed_chain(data, bad, seed))
        for chain in seeds:
            if form.follows(data, bad + size, chain):
                return bad + size, chain
    for at in form.candidates(data, bad + 1):
        for chain in seeds:
            if form.follows(data, at, chain):
                return at, chain
        size = form.stated_bytes(data, at)
        if size and form.follows(data, at + size, form.stored_chain(data, at)):
            return at + size, form.stored_chain(data, at)
    return None
