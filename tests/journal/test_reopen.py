# SPDX-License-Identifier: Apache-2.0
"""Opening a log after a kill, a power cut, rot: nothing durable is lost, nothing bad is kept."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journal.appender import AppendError
from journal.format import ENTRIES, RECORDS
from journal.reader import LogReader
from journal.record import HEADER_BYTES
from journal.recovery import Action
from journal.reopen import Reopened, reopen
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import pack_header, parse_header
from replicator.base.errors import DamageError
from tests.journal.logs import DIRECTORY, STREAM, Inbox, Log, payloads_of
from tests.world.storage import Failure, SimStorage, Stopped


def reopened_quietly(log: Log, acknowledged: int | None = None) -> Reopened:
    return _reopen(log, acknowledged, lambda _lsn, _entry: None)


def _reopen(log: Log, acknowledged: int | None, visit: Callable[[int, object], None]) -> Reopened:
    place = (log.storage, log.directories, STREAM)
    start, chain = log.ends[0]
    if isinstance(log, Inbox):
        return reopen(
            *place, ENTRIES, start_lsn=start, chain=chain, acknowledged=acknowledged, visit=visit
        )
    return reopen(
        *place, RECORDS, start_lsn=start, chain=chain, acknowledged=acknowledged, visit=visit
    )


def reopened(log: Log, acknowledged: int | None = None) -> Reopened:
    """Checks too that every good entry was shown."""
    seen: list[int] = []
    found = _reopen(log, acknowledged, lambda lsn, _entry: seen.append(lsn))
    assert seen == [end for end, _ in log.ends if end < found.end_lsn]
    return found


def offset_in(log: Log, lsn: int) -> tuple[Path, int]:
    segment = [each for each in log.segments if each.first_lsn <= lsn][-1]
    return segment.path, SEGMENT_HEADER_BYTES + lsn - segment.first_lsn


@pytest.fixture(params=[Log, Inbox])
def kind(request: pytest.FixtureRequest) -> type[Log]:
    chosen: type[Log] = request.param
    return chosen


def test_a_log_that_was_never_written_is_empty(kind: type[Log]) -> None:
    found = reopened(kind(SimStorage()))
    assert (found.first_lsn, found.end_lsn, found.newest) == (0, 0, None)
    assert found.verdict.action is Action.KEEP


def test_after_a_kill_everything_is_there_is_synced_and_goes_on(kind: type[Log]) -> None:
    storage = SimStorage()
    log = kind(storage, segment_bytes=3000)
    for payload in payloads_of([900] * 7):
        log.append(payload)
    storage.kill()
    found = reopened(log)
    assert (found.end_lsn, found.chain) == log.ends[-1]
    assert found.verdict.label == "clean"
    assert all(storage.is_synced(segment.path) for segment in log.segments)
    log.go_on(found)
    log.append(b"more")
    assert reopened(log).end_lsn == log.writer.end_lsn
    if kind is Log:
        assert log.read_all() == [*payloads_of([900] * 7), b"more"]


def test_a_durable_lsn_is_reported_only_of_what_survives_the_next_power_cut() -> None:
    """Without the sync on opening, what was read from the page cache is gone a second later."""
    for seed in range(20):
        storage = SimStorage()
        log = Log(storage)
        log.append(*payloads_of([700] * 5))
        storage.kill()
        promised = reopened(log).end_lsn
        storage.power_cut(Random(seed))
        assert reopened(log, acknowledged=promised).end_lsn == promised


@pytest.mark.parametrize("kept", list(product((False, True), repeat=4)))
@pytest.mark.parametrize("lost_as", [b"\0", b"\xa5"])
def test_any_subset_of_four_unsynced_entries_is_cut_at_the_first_lost_one(
    kind: type[Log], kept: tuple[bool, ...], lost_as: bytes
) -> None:
    storage = SimStorage()
    log = kind(storage)
    log.append(*payloads_of([600, 800]))
    log.sync()
    log.append(*payloads_of([500, 1, 1200, 64]))
    log.writer.close()
    path, _ = offset_in(log, 0)
    file = storage.open(path, writable=True)
    ends = [end for end, _ in log.ends]
    for survives, start, end in zip(kept, ends[2:], ends[3:], strict=False):
        if not survives:
            file.pwritev([lost_as * (end - start)], SEGMENT_HEADER_BYTES + start)
    file.close()
    found = reopened(log, acknowledged=log.durable)
    whole = kept.index(False) if False in kept else 4
    assert (found.end_lsn, found.chain) == log.ends[2 + whole]
    assert (found.verdict.action is Action.CUT) == (whole < 4)
    if whole < 4:
        # With the chain lost, it takes two entries that agree to know them for good ones.
        survivors = any(one and other for one, other in pairwise(kept[whole:]))
        assert (found.verdict.label == "survivors behind a lost entry") == survivors


def test_rot_in_every_byte_of_what_was_durable_is_damage_and_nothing_is_touched(
    kind: type[Log],
) -> None:
    """Also without a witness: the statement of the entries behind tells rot from a torn tail."""
    storage = SimStorage()
    log = kind(storage)
    log.append(*payloads_of([90, 70]))
    log.sync()
    log.append(b"behind")
    log.writer.close()
    path, _ = offset_in(log, 0)
    size = SEGMENT_HEADER_BYTES + log.durable
    for at in range(SEGMENT_HEADER_BYTES, size):
        for mask in (1, 0x80):
            storage.flip(path, at, mask)
            with pytest.raises(DamageError, match="had been durable") as error:
                reopened_quietly(log)
            assert f"{path} at offset" in error.value.message
            storage.flip(path, at, mask)
    assert reopened(log).end_lsn == log.writer.end_lsn


def test_rot_in_the_last_synced_group_needs_the_witness() -> None:
    storage = SimStorage()
    log = Log(storage)
    log.append(b"a" * 100)
    log.sync()
    storage.flip(*offset_in(log, 70))
    with pytest.raises(DamageError, match="acknowledged"):
        reopened_quietly(log, acknowledged=log.durable)
    assert reopened(log).verdict.action is Action.CUT  # nobody can know better


def test_a_log_shorter_than_what_was_acknowledged_is_a_gap(kind: type[Log]) -> None:
    log = kind(SimStorage(), segment_bytes=1000)
    for payload in payloads_of([800] * 3):
        log.append(payload)
    log.sync()
    log.writer.close()
    log.storage.unlink(log.segments[-1].path)
    with pytest.raises(DamageError, match="the log once reached further"):
        reopened_quietly(log, acknowledged=log.durable)


def test_a_missing_segment_in_the_middle_is_damage_by_the_header_behind_it(
    kind: type[Log],
) -> None:
    log = kind(SimStorage(), segment_bytes=1000)
    for payload in payloads_of([800] * 3):
        log.append(payload)
        log.sync()
    log.writer.close()
    log.storage.unlink(log.segments[1].path)
    with pytest.raises(DamageError, match="had been durable"):
        reopened_quietly(log)


def test_every_length_of_a_torn_file_is_cut_at_the_last_whole_entry(kind: type[Log]) -> None:
    storage = SimStorage()
    log = kind(storage)
    log.append(*payloads_of([40, 90, 1]))
    log.writer.close()
    (segment,) = log.segments
    file = storage.open(segment.path, writable=True)
    whole = file.pread(1 << 20, 0)
    for size in range(len(whole) + 1):
        if not storage.exists(segment.path):
            file = storage.create(segment.path)
        file.truncate(0)
        file.pwritev([whole[:size]], 0)
        found = reopened(log)
        expected = max(end for end in log.ends if end[0] <= max(0, size - SEGMENT_HEADER_BYTES))
        assert (found.end_lsn, found.chain) == expected
        if expected[0] or size == SEGMENT_HEADER_BYTES:
            assert found.newest == segment
            assert file.size() == SEGMENT_HEADER_BYTES + expected[0]
        else:
            assert not storage.exists(segment.path)
            assert found.newest is None


def test_a_stale_record_of_another_log_never_passes_for_one_of_this() -> None:
    """A block that was recycled holds good records, with good payloads, of an older log."""
    storage = SimStorage()
    old = Log(storage, Path("/spool/old"), first_lsn=1 << 40)
    old.append(*payloads_of([512] * 7))
    old.writer.close()
    log = Log(storage)
    log.append(*payloads_of([512] * 6))
    log.writer.close()
    size = HEADER_BYTES + 512
    older = storage.open(old.segments[0].path)
    file = storage.open(log.segments[0].path, writable=True)
    for number in range(6):
        at = SEGMENT_HEADER_BYTES + number * size
        mine = file.pread(size, at)
        file.pwritev([older.pread(size, at + size)], at)
        probe = Log(storage)  # what a verifying reader makes of it
        probe.ends, probe.payloads = log.ends, log.payloads
        end, _, problem = _verified_end(probe)
        assert end == number * size
        assert "does not follow" in problem
        file.pwritev([mine], at)
    assert reopened(log).end_lsn == log.writer.end_lsn


def _verified_end(log: Log) -> tuple[int, int, str]:
    reader = LogReader(log.storage, log.directories, STREAM)
    try:
        return reader.verified_end(*log.ends[0])
    finally:
        reader.close()


def test_records_swapped_doubled_or_left_out_break_the_chain() -> None:
    storage = SimStorage()
    log = Log(storage)
    log.append(*payloads_of([512] * 4))
    file = storage.open(log.segments[0].path, writable=True)
    size = HEADER_BYTES + 512
    parts = [file.pread(size, SEGMENT_HEADER_BYTES + number * size) for number in range(4)]
    for order, good in (((0, 2, 1, 3), 1), ((0, 1, 1, 3), 2), ((0, 1, 3, 3), 2), ((1, 0, 2, 3), 0)):
        file.pwritev([parts[number] for number in order], SEGMENT_HEADER_BYTES)
        end, chain, problem = _verified_end(log)
        assert (end, chain) == log.ends[good]
        assert "does not follow" in problem
    file.close()


actions = st.lists(
    st.one_of(
        st.lists(st.integers(1, 3000), min_size=1, max_size=4),
        st.sampled_from(["sync", "rotate", "kill", "power"]),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([Log, Inbox]), actions, st.integers(0, 1 << 32), st.integers(1, 9000))
def test_nothing_durable_is_lost_by_any_sequence_of_kills_and_power_cuts(
    kind: type[Log], steps: list[list[int] | str], seed: int, segment_bytes: int
) -> None:
    storage, rng = SimStorage(), Random(seed)
    log = kind(storage, segment_bytes=segment_bytes)
    for step in [*steps, "power"]:
        if isinstance(step, list):
            log.append(*[rng.randbytes(size) for size in step])
        elif step == "sync":
            log.sync()
        elif step == "rotate":
            log.writer.rotate()
        else:
            written = log.writer.end_lsn
            if step == "kill":
                storage.kill()
            else:
                storage.power_cut(rng)
            found = reopened(log, acknowledged=log.durable)
            assert found.end_lsn == written if step == "kill" else found.end_lsn >= log.durable
            log.go_on(found)
            if kind is Log:
                assert log.read_all() == log.payloads


@pytest.mark.parametrize("seed", range(6))
def test_a_power_cut_before_every_call_of_append_sync_and_reopen(seed: int) -> None:
    """Dies before the nth changing call for every n, and once more while it opens again."""
    total = 0
    for nth in range(1, 200):
        storage, rng = SimStorage(), Random(seed * 1000 + nth)
        log = Log(storage, segment_bytes=2500)
        storage.stop_at(nth)
        try:
            for payload in payloads_of([900] * 8):
                log.append(payload)
                log.sync()
            finished = True
        except Stopped:
            finished = False
        storage.power_cut(rng)
        storage.stop_at(rng.randint(1, 6))
        try:
            reopened_quietly(log, acknowledged=log.durable)
        except Stopped:
            storage.power_cut(rng)
        storage.heal()
        # A batch may have gone in that nobody was told of.
        found = reopened_quietly(log, acknowledged=log.durable)
        assert found.end_lsn >= log.durable
        total += 1
        if finished:
            break
    assert total > 25


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("written", [None, 1, 63, 150, 191])
def test_the_nth_call_fails_for_every_n_and_the_log_is_as_it_was(
    forever: bool, code: int, written: int | None
) -> None:
    calls = frozenset({"create", "pwritev", "truncate", "make_directory", "unlink"})
    for nth in range(1, 60):
        storage = SimStorage()
        log = Log(storage, segment_bytes=700)
        storage.plan(Failure(calls, nth, code, forever=forever, written=written))
        failed = 0
        for payload in payloads_of([300] * 6):
            before = log.writer.end_lsn, log.writer.chain
            try:
                log.append(payload)
            except AppendError:
                failed += 1
                assert (log.writer.end_lsn, log.writer.chain) == before
        storage.heal()
        if not log.writer.broken:
            log.append(b"after")
            assert log.read_all() == log.payloads
        storage.kill()
        found = reopened(log)
        assert (found.end_lsn, found.chain) == log.ends[-1]
        if not failed:
            break
    assert nth > 5


def test_a_failed_sync_condemns_the_log_and_is_never_tried_again() -> None:
    storage = SimStorage()
    log = Log(storage)
    log.append(b"a" * 600)
    storage.plan(Failure(frozenset({"datasync"}), 1, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        log.sync()
    assert log.writer.broken
    with pytest.raises(AppendError):
        log.append(b"b")
    with pytest.raises(OSError, match="condemned"):
        log.sync()
    assert storage.calls["datasync"] == 1


def test_a_reopened_log_that_was_sealed_goes_on_in_a_new_segment_at_a_known_place() -> None:
    log = Log(SimStorage(), DIRECTORY, segment_bytes=1000, first_lsn=5 << 40)
    for payload in payloads_of([800] * 4):
        log.append(payload)
    log.sync()
    middle, chain = log.ends[2]
    found = reopen(log.storage, log.directories, STREAM, RECORDS, start_lsn=middle, chain=chain)
    assert (found.first_lsn, found.end_lsn) == (5 << 40, log.writer.end_lsn)


def test_a_segment_whose_header_starts_from_another_chain_does_not_follow() -> None:
    log = Log(SimStorage(), segment_bytes=1000)
    for payload in payloads_of([800] * 3):
        log.append(payload)
        log.sync()
    file = log.storage.open(log.segments[1].path, writable=True)
    header = parse_header(file.pread(SEGMENT_HEADER_BYTES, 0), "here")
    file.pwritev([pack_header(replace(header, chain=header.chain ^ 1))], 0)
    file.close()
    with pytest.raises(DamageError, match="does not follow the segment before it"):
        reopened_quietly(log)


def test_a_record_cut_short_hides_no_records_whatever_a_guest_wrote_into_it() -> None:
    inner = Log(SimStorage())
    inner.append(*payloads_of([100] * 4))
    data = inner.storage.open(inner.segments[0].path).pread(1 << 20, SEGMENT_HEADER_BYTES)
    log = Log(SimStorage())
    log.append(b"first")
    log.append(data + bytes(500))
    file = log.storage.open(log.segments[0].path, writable=True)
    file.truncate(file.size() - 400)
    found = reopened(log)
    assert (found.verdict.label, found.end_lsn) == ("torn at the end", log.ends[1][0])


def test_going_on_in_a_segment_syncs_it_even_if_nothing_is_appended() -> None:
    log = Log(SimStorage())
    log.append(b"x")
    log.writer.close()
    (segment,) = log.segments
    writer = log._writer(*log.ends[-1])
    writer.continue_in(segment.path, 0, *log.ends[-1])
    assert not log.sim.is_synced(segment.path)
    assert writer.sync() == log.ends[-1][0]
    assert log.sim.is_synced(segment.path)


def test_a_known_place_behind_the_end_of_its_file_is_damage(kind: type[Log]) -> None:
    """Else the log would go on there, behind a hole."""
    log = kind(SimStorage())
    log.append(*payloads_of([100] * 5))
    log.sync()
    start, chain = log.ends[4]
    path = log.segments[0].path
    file = log.storage.open(path, writable=True)
    for end_lsn in (start, start - 1, log.ends[2][0], 0):
        file.truncate(SEGMENT_HEADER_BYTES + end_lsn)
        place = (log.storage, log.directories, STREAM)
        if end_lsn == start:
            assert reopen(*place, RECORDS, start_lsn=start, chain=chain).end_lsn == start
            continue
        with pytest.raises(DamageError, match=f"ends before LSN {start}"):
            reopen(*place, RECORDS, start_lsn=start, chain=chain)
        assert file.size() == SEGMENT_HEADER_BYTES + end_lsn
    file.close()
