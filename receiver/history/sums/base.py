# SPDX-License-Identifier: Apache-2.0
"""The base of sums: what blocks hold of which the history no longer tells.

The history says of every block that a batch changed what it holds behind that batch. When old
segments go, or batches lose their images, that knowledge would go with them; nothing can make it
anew, for the replica itself is what it is to be checked against. So it is put here first:

    GROUP/sums/LOW-HIGH.sums       runs of sums (receiver.history.sums.runs), oldest first

`absorb` adds a run, durable before what it was taken from goes. Neighbouring runs of like size are
merged, so there are few, and a row is rewritten a logarithmic number of times. A merged run takes
the name LOW-HIGH of all it stands for; whatever a crash leaves, the wider one counts.

The base covers batches up to number `upto`; sums of later ones come from the history. What it
lacks it knows: `is_whole` is false where sums were lost (rot, a disk too full to write them when
room had to be made), and then a block without a sum is not known rather than zero.

Concurrency: apply thread. Failure: a run that could not be written is not there, and nothing that
it is about has gone.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from receiver.history.images import U64, Bools
from receiver.history.sums.runs import (
    NEW_SUFFIX,
    SUFFIX,
    BadRange,
    RunFacts,
    SumRun,
    merged,
    write_run,
    writing,
)
from replicator.base.errors import DamageError
from replicator.base.mishaps import is_full
from replicator.base.storage import Storage

MERGE_RATIO = 2
_NAME = re.compile(rf"([0-9a-f]{{8}})-([0-9a-f]{{8}}){re.escape(SUFFIX)}")


@dataclass(frozen=True, slots=True)
class _Merging:
    """Two neighbours that are being put together, into `path`."""

    older: SumRun
    newer: SumRun
    path: Path
    steps: Generator[int, None, None]


class SumBase:
    """See the head of this file. `open` comes first."""

    def __init__(self, storage: Storage, folder: Path, *, in_steps: bool = False) -> None:
        """`in_steps`: runs are merged by `merge_step`, else at once."""
        self._in_steps = in_steps
        self._merging: _Merging | None = None
        self._storage = storage
        self._folder = folder
        self._runs: list[SumRun] = []
        self._next = 1
        self._futile = False
        """The last merge has failed: not again before there is something new."""
        self.damage: list[DamageError] = []
        """Runs that cannot be used at all."""

    def open(self) -> None:
        """May be called again. Raises OSError. Damage is kept, not raised: it costs what was known,
        and nothing else."""
        self.close()
        self.damage, self._next = [], 1
        if not self._storage.exists(self._folder):
            return
        for name in self._storage.names(self._folder):
            if name.endswith(NEW_SUFFIX):
                self._storage.unlink(self._folder / name)
        self._storage.sync_directory(self._folder)
        for path in self._live():
            try:
                self._runs.append(SumRun.open(self._storage, path))
            except DamageError as error:
                self.damage.append(error)

    def _live(self) -> list[Path]:
        """The files that count, oldest first; those that another stands for are removed."""
        found: list[tuple[int, int, str]] = []
        for name in self._storage.names(self._folder):
            match = _NAME.fullmatch(name)
            if match is not None:
                found.append((int(match[1], 16), -int(match[2], 16), name))
        live: list[Path] = []
        covered = 0
        for low, high, name in sorted(found):
            if low <= covered:
                self._storage.unlink(self._folder / name)
                continue
            live.append(self._folder / name)
            covered = -high
        self._next = covered + 1
        return live

    @property
    def upto(self) -> int:
        """Number of the last batch that is in here."""
        return self._runs[-1].facts.upto if self._runs else 0

    @property
    def end(self) -> int:
        """Up to which position of the history that is."""
        return self._runs[-1].facts.end if self._runs else 0

    def lacks(self, first: int, imageless: int) -> bool:
        """Whether a history that begins at position `first`, and has no images of batches up to
        number `imageless`, has let go of what is not here: it told the base first, so this base
        is an older one, or had to be given up."""
        return self.end < first or self.upto < imageless

    def reaches(self, first: int) -> bool:
        """Whether every block that was changed in front of position `first` of the history has its
        sum here."""
        if self.damage:
            return False
        facts = self._runs[-1].facts if self._runs else RunFacts(0, 0, is_whole=True)
        return facts.is_whole and facts.end >= first

    def read(self, start: int, end: int) -> tuple[list[tuple[U64, U64]], list[BadRange]]:
        """([(keys, sums)] oldest first, so later ones are right; what could not be read)."""
        found: list[tuple[U64, U64]] = []
        bad: list[BadRange] = []
        for run in self._runs:
            keys, sums, unreadable = run.read(start, end)
            found.append((keys, sums))
            bad += unreadable
        return found, bad

    def absorb(self, parts: Iterable[tuple[U64, U64]], *, upto: int, first: int, end: int) -> None:
        """Takes in the sums of all batches up to number `upto` that are not here yet: (keys, sums),
        sorted over all parts. `first` is where the history begins now, `end` up to where it has
        then been taken in. Durable when it returns. Raises OSError."""
        assert upto >= self.upto
        self._storage.make_directory(self._folder)
        facts = RunFacts(upto, end, self.reaches(first))
        self._futile = False
        number = self._next
        path = self._path(number, number)
        write_run(self._storage, path, facts, parts)
        self._next += 1
        self._runs.append(SumRun.open(self._storage, path))
        while not self._in_steps and self.merge_step():
            pass

    def find(self, keys: U64, sums: U64, is_found: Bools) -> bool:
        """Fills in what is known of the keys (sorted) that are not found yet; what has rotted is
        found, and its sum left as it is. Whether anything has. Raises OSError."""
        rotten = False
        for run in reversed(self._runs):
            left = np.flatnonzero(~is_found)
            if not len(left):
                break
            found = run.find(keys[left])
            there = left[found.is_there]
            sums[there] = found.sums[found.is_there]
            is_found[there] = True
            is_found[left[found.is_bad]] = True
            rotten |= bool(found.is_bad.any())
        return rotten

    def give_up(self) -> None:
        """Forgets everything, for good. For a disk so full that nothing can be written any more,
        and room has to be made all the same."""
        self._stop_merging()
        runs, self._runs = self._runs, []
        for run in reversed(runs):  # an older one alone claims less, never what is wrong
            self._remove(run)
        left = [name for name in self._storage.names(self._folder) if _NAME.fullmatch(name)]
        for name in left:
            self._storage.unlink(self._folder / name)
        if runs or left:
            self._storage.sync_directory(self._folder)

    def begin_anew(self, first: int, imageless: int) -> None:
        """What is here is older than the history, which begins at position `first` and has no
        images of batches up to number `imageless`: of what it has let go of nothing is known any
        more, and that is known. Durable. Raises OSError; on a full disk only where an empty base
        would say that nothing is missing."""
        self.give_up()
        self._storage.make_directory(self._folder)
        path = self._path(self._next, self._next)
        try:
            write_run(self._storage, path, RunFacts(imageless, first, is_whole=False), [])
        except OSError as error:
            if not is_full(error) or not first:
                raise
            return
        self._next += 1
        self._runs.append(SumRun.open(self._storage, path))

    def close(self) -> None:
        self._stop_merging()
        for run in self._runs:
            run.close()
        self._runs = []

    # -- inside

    def merge_step(self) -> bool:
        """Puts two neighbours together, or some of it. False: there is nothing to do. What cannot
        be merged stays as it is: a full disk, rot."""
        work = self._merging or self._next_merge()
        self._merging = work
        if work is None:
            return False
        try:
            if next(work.steps, None) is not None:
                return True
            fresh = SumRun.open(self._storage, work.path)
        except (DamageError, OSError):
            self._merging, self._futile = None, True
            return False
        self._merging = None
        at = self._runs.index(work.older)
        self._runs[at : at + 2] = [fresh]
        for run in (work.older, work.newer):
            self._remove(run)
        return True

    def _next_merge(self) -> _Merging | None:
        """The newest two that have become of like size."""
        if self._futile:
            return None
        for older, newer in reversed(list(pairwise(self._runs))):
            if older.count <= MERGE_RATIO * newer.count:
                path = self._path(_numbers(older.path)[0], _numbers(newer.path)[1])
                rows = merged(older, newer)
                return _Merging(older, newer, path, writing(self._storage, path, newer.facts, rows))
        return None

    def _stop_merging(self) -> None:
        work, self._merging = self._merging, None
        if work is not None:
            work.steps.close()

    def _remove(self, run: SumRun) -> None:
        run.close()
        with suppress(FileNotFoundError):
            self._storage.unlink(run.path)

    def _path(self, low: int, high: int) -> Path:
        return self._folder / f"{low:08x}-{high:08x}{SUFFIX}"


def _numbers(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1], 16), int(match[2], 16)
