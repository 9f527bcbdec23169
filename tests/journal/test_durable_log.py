# SPDX-License-Identifier: Apache-2.0
"""The log that is cut back: what counted is there after each crash, what was lost never returns."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from journal.durable_log import DurableLog
from journal.format import RECORDS
from journal.record import Record, RecordType, encode_header
from journal.reopen import Reopened, reopen
from journal.segment import SegmentKind
from journal.spool import StreamName
from tests.journal.logs import CHAIN, DIRECTORY, STREAM
from tests.world.faults import ALL_CALLS, CHANGING_CALLS, Failure, Stopped
from tests.world.storage import SimStorage

LIVES = 150
STEPS = 40


class Kept:
    """A log of numbers, and which of them count."""

    def __init__(self, storage: SimStorage) -> None:
        self.storage = storage
        self.durable: list[int] = []
        self.appended: list[int] = []
        self.to_cut: list[int] = []
        self.trying: list[int] = []
        self.next = 0
        self.losses = 0
        self.log = self._new_log()
        self.log.begin_at(STREAM, 0, CHAIN)

    def _new_log(self) -> DurableLog:
        return DurableLog(
            self.storage, DIRECTORY, SegmentKind.HISTORY, "g", lambda: 5, lost=self._lost
        )

    def _lost(self) -> None:
        self.losses += 1
        self.to_cut = self.appended + self.trying
        self.appended = self.durable.copy()

    def append(self) -> None:
        log = self.log
        log.make_sound()
        payload = self.next.to_bytes(8, "little") * 16
        header, chain = encode_header(
            RecordType.WRITE, 0, 0, len(payload), 1, 9, payload, log.known_durable, log.chain
        )
        self.trying = [self.next]
        self.next += 1  # one that was tried and failed is not tried again: its return would show
        try:
            log.append([header, payload], len(header) + len(payload), chain)
            self.appended += self.trying
        finally:
            if not self.storage.stopped:
                self.trying = []

    def sync(self) -> None:
        self.log.sync()
        self.durable = self.appended.copy()

    def rotate(self) -> None:
        self.sync()
        self.log.rotate()

    def cut_back(self) -> None:
        self.log.cut_back()

    def read(self) -> tuple[list[int], Reopened]:
        found: list[int] = []

        def visit(_position: int, record: Record) -> None:
            found.append(int.from_bytes(bytes(record.payload[:8]), "little"))

        reopened = reopen(
            self.storage, [DIRECTORY], STREAM, RECORDS, start_lsn=0, chain=CHAIN, visit=visit
        )
        return found, reopened

    def go_on(self) -> None:
        """A new process opens it. What was being appended may be there, and then it counts; so may
        what was to be cut off, where the process died before it was."""
        found, reopened = self.read()
        assert found[: len(self.durable)] == self.durable, "what counted is there"
        may_be = self.appended + self.trying if self.log.is_sound else self.to_cut
        assert found == may_be[: len(found)], "and nothing that was lost"
        self.trying = []
        self.durable, self.appended = found, found.copy()
        self.log = self._new_log()
        self.log.take_up(STREAM, reopened)


def kept() -> Kept:
    return Kept(SimStorage())


@pytest.mark.parametrize("seed", range(LIVES))
def test_random_lives(seed: int) -> None:
    """Calls that fail, once or for a while, kills and power cuts, at any call."""
    rng = Random(seed)
    it = kept()
    storage = it.storage
    for _ in range(STEPS):
        if rng.random() < 0.3:
            calls = frozenset([rng.choice(sorted(ALL_CALLS))])
            code = rng.choice([errno.EIO, errno.ENOSPC])
            written = rng.randrange(200) if rng.random() < 0.3 else None
            storage.plan(
                Failure(calls, rng.randint(1, 4), code, forever=rng.random() < 0.3, written=written)
            )
        if rng.random() < 0.15:
            storage.stop_at(rng.randint(1, 6))
        step = rng.choice([it.append] * 4 + [it.sync] * 2 + [it.rotate, it.cut_back])
        try:
            step()
        except OSError:
            assert it.appended[: len(it.durable)] == it.durable
        except Stopped:
            pass
        if storage.stopped or rng.random() < 0.1:
            storage.heal()
            if rng.random() < 0.5:
                storage.power_cut(rng)
            else:
                storage.kill()
            it.go_on()
        elif rng.random() < 0.4:
            storage.heal()
    storage.heal()
    it.log.make_sound()
    assert it.log.is_sound
    it.append()
    it.sync()
    storage.power_cut(rng)
    found, _ = it.read()
    assert found == it.durable


def test_a_failed_sync_loses_what_was_not_durable_and_nothing_else() -> None:
    it = kept()
    it.append()
    it.sync()
    it.append()
    it.storage.plan(Failure(frozenset(["datasync"]), 1, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        it.sync()
    assert (it.losses, it.appended) == (1, [0])
    assert it.log.is_sound
    assert it.log.end == it.log.durable_end
    it.append()
    it.sync()
    it.storage.power_cut(Random(1))
    assert it.read()[0] == [0, 2]


def test_what_was_lost_is_cut_off_durably_before_anything_else_is_appended() -> None:
    it = kept()
    it.append()
    it.sync()
    it.append()
    it.cut_back()
    assert it.appended == [0]
    it.storage.power_cut(Random(1))
    assert it.read()[0] == [0], "nobody synced after the cut but the cut itself"


def test_where_even_the_cut_fails_nothing_is_appended_until_it_succeeds() -> None:
    it = kept()
    it.append()
    it.sync()
    it.append()
    it.storage.plan(Failure(frozenset(["datasync"]), 1, errno.EIO, forever=True))
    with pytest.raises(OSError, match="Input/output"):
        it.sync()
    end = it.log.end
    with pytest.raises(OSError, match="Input/output"):
        it.append()
    assert (it.log.end, it.losses) == (end, 1)
    it.storage.heal()
    it.append()
    it.sync()
    assert it.read()[0] == [0, it.next - 1]


def test_an_append_that_finds_no_room_loses_nothing() -> None:
    it = kept()
    it.append()
    it.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        it.append()
    assert (it.losses, it.appended) == (0, [0])
    it.sync()
    assert it.read()[0] == [0]


def test_a_segment_that_holds_nothing_durable_goes_whole() -> None:
    it = kept()
    it.append()
    it.rotate()
    it.append()
    assert len(it.storage.names(DIRECTORY / STREAM.directory)) == 2
    it.cut_back()
    assert len(it.storage.names(DIRECTORY / STREAM.directory)) == 1
    it.append()
    it.sync()
    assert it.read()[0] == [0, 2]


@pytest.mark.parametrize("seed", range(16))
def test_a_segment_that_went_stays_away_though_its_folder_failed_at_first(seed: int) -> None:
    it = kept()
    it.append()
    it.rotate()
    it.append()
    path = it.log.segment_path
    assert path is not None
    it.storage.open(path, writable=True).datasync()  # the disk has it, as the kernel likes
    it.storage.sync_directory(path.parent)
    it.storage.plan(Failure(frozenset(["sync_directory"]), 1, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        it.cut_back()
    assert not it.log.is_sound
    it.log.make_sound()
    it.storage.power_cut(Random(seed))
    assert it.read()[0] == [0]


def test_a_segment_is_left_only_when_it_is_durable() -> None:
    it = kept()
    it.append()
    with pytest.raises(AssertionError, match="not durable"):
        it.log.rotate()


@pytest.mark.parametrize("call", sorted(CHANGING_CALLS & {"pwritev", "truncate", "unlink"}))
def test_a_new_stream_owes_nothing_to_the_one_before(call: str) -> None:
    """A cut that is still to be done belongs to the stream it was done for."""
    it = kept()
    it.append()
    it.storage.plan(Failure(frozenset(["datasync", call]), 1, errno.EIO, forever=True))
    with pytest.raises(OSError, match="Input/output"):
        it.sync()
    it.storage.heal()
    other = StreamName(STREAM.ordinal + 1, STREAM.stream)
    it.log.begin_at(other, 0, CHAIN)
    assert it.log.is_sound
    it.append()
    it.log.sync()
    assert [Path(name).name for name in it.storage.names(DIRECTORY)] == sorted(
        [STREAM.directory, other.directory]
    )
