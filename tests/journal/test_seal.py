# SPDX-License-Identifier: Apache-2.0
"""Seals: what is sealed is whole, and what is changed afterwards is found, wherever it is."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from journal.format import RECORDS
from journal.reader import LogReader
from journal.record import NO_DISK, RecordType, encode_header
from journal.reopen import reopen
from journal.seal import FIRST_DIGEST, read_index, seal_segment, verify_segment
from journal.segment import HEADER_BYTES, TRAILER_BYTES, Seal, pack_seal
from replicator.base.errors import DamageError, ReplicatorError
from replicator.base.storage import read_whole
from tests.journal.logs import STREAM, Inbox, Log, payloads_of
from tests.world.storage import Failure, SimStorage, Stopped


def log_of(count: int, *, segment_bytes: int = 1 << 20, kind: type[Log] = Log) -> Log:
    log = kind(SimStorage(), segment_bytes=segment_bytes)
    for payload in payloads_of([300] * count):
        log.append(payload)
    log.sync()
    return log


def seal_all(log: Log) -> list[Seal]:
    """Seals every segment, the last too, as of a log that is over."""
    seals: list[Seal] = []
    segments = log.segments
    ends = [segment.first_lsn for segment in segments[1:]] + [log.writer.end_lsn]
    digest = FIRST_DIGEST
    for segment, end_lsn in zip(segments, ends, strict=True):
        seals.append(
            seal_segment(log.storage, segment.path, end_lsn=end_lsn, previous_digest=digest)
        )
        digest = seals[-1].digest
    return seals


def content(log: Log, path: Path) -> bytes:
    return read_whole(log.storage, path, 1 << 30)


@pytest.mark.parametrize("kind", [Log, Inbox])
def test_sealed_segments_link_up_are_durable_and_sealing_again_changes_nothing(
    kind: type[Log],
) -> None:
    log = log_of(9, segment_bytes=1000, kind=kind)
    seals = seal_all(log)
    assert len(seals) > 2
    log.sim.power_cut(Random(1))
    digest = FIRST_DIGEST
    for segment, seal in zip(log.segments, seals, strict=True):
        assert verify_segment(log.storage, segment.path, previous_digest=digest) == seal
        digest = seal.digest
    assert seal_all(log) == seals


def test_the_digest_is_that_of_the_file_before_it() -> None:
    """As the shell line in docs/formats.md takes it."""
    log = log_of(3)
    (seal,) = seal_all(log)
    data = content(log, log.segments[0].path)
    assert hashlib.blake2b(data[:-56], digest_size=32).digest() == data[-56:-24] == seal.digest
    assert data[-88:-56] == FIRST_DIGEST


def test_the_index_finds_the_cuts() -> None:
    log = log_of(2)
    header, chain = encode_header(
        RecordType.CUT, NO_DISK, 0, 0, 7, 123, b"body", 0, log.writer.chain
    )
    cut_lsn = log.writer.end_lsn
    log.writer.append([header, b"body"], len(header) + 4, chain)
    (seal,) = seal_all(log)
    file = log.storage.open(log.segments[0].path)
    assert list(read_index(file, 0, seal)) == [(cut_lsn, 123)]
    file.close()
    assert seal.entries == 3


def test_every_flipped_bit_of_a_sealed_segment_is_found() -> None:
    log = log_of(2)
    log.append(b"x")
    seal_all(log)
    path = log.segments[0].path
    size = len(content(log, path))
    for at in range(size):
        for bit in range(8):
            log.sim.flip(path, at, 1 << bit)
            with pytest.raises(DamageError, match=str(path)):
                verify_segment(log.storage, path, previous_digest=FIRST_DIGEST)
            log.sim.flip(path, at, 1 << bit)
    verify_segment(log.storage, path)


def test_rot_in_a_sealed_segment_is_damage_on_opening_even_at_its_very_end() -> None:
    log = log_of(3)
    seal_all(log)
    path = log.segments[0].path
    log.sim.flip(path, HEADER_BYTES + log.writer.end_lsn - 1)
    with pytest.raises(DamageError, match="whole when it was sealed"):
        reopen(log.storage, log.directories, STREAM, RECORDS)


def test_every_truncation_of_a_sealed_segment_is_found() -> None:
    log = log_of(2)
    seal_all(log)
    path = log.segments[0].path
    whole = content(log, path)
    file = log.storage.open(path, writable=True)
    for size in reversed(range(len(whole))):
        file.truncate(size)
        with pytest.raises(DamageError):
            verify_segment(log.storage, path)
    file.close()


def test_a_sealed_segment_in_the_place_of_another_is_found() -> None:
    log = log_of(9, segment_bytes=1000)
    seals = seal_all(log)
    with pytest.raises(DamageError, match="does not follow"):
        verify_segment(log.storage, log.segments[2].path, previous_digest=seals[0].digest)


def test_what_is_not_good_is_not_sealed_and_left_as_it_is() -> None:
    log = log_of(3)
    path = log.segments[0].path
    for end_lsn in (log.writer.end_lsn - 1, log.writer.end_lsn + 1):
        before = content(log, path)
        with pytest.raises(DamageError, match="file offset"):
            seal_segment(log.storage, path, end_lsn=end_lsn, previous_digest=FIRST_DIGEST)
        assert content(log, path) == before
    log.sim.flip(path, HEADER_BYTES + 100)
    with pytest.raises(DamageError, match="file offset 192"):
        seal_segment(log.storage, path, end_lsn=log.writer.end_lsn, previous_digest=FIRST_DIGEST)


def test_a_log_whose_last_segment_is_sealed_reads_on_and_goes_on_in_a_new_one() -> None:
    log = log_of(5, segment_bytes=1000)
    seal_all(log)
    log.sim.kill()
    assert log.read_all() == log.payloads
    reader = LogReader(log.storage, log.directories, STREAM)
    assert reader.verified_end(*log.ends[0]) == (*log.ends[-1], "")
    reader.close()
    found = reopen(log.storage, log.directories, STREAM, RECORDS)
    assert (found.verdict.label, found.newest) == ("sealed", None)
    segments = len(log.segments)
    log.go_on(found)
    log.append(b"more")
    assert len(log.segments) == segments + 1
    assert log.read_all() == [*payloads_of([300] * 5), b"more"]
    verify_segment(log.storage, log.segments[-2].path)


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_before_every_call_of_sealing_leaves_a_log_that_reads_the_same(
    seed: int,
) -> None:
    for nth in range(1, 30):
        log = log_of(5, segment_bytes=1000)
        log.writer.close()
        log.sim.stop_at(nth)
        try:
            seal_all(log)
            finished = True
        except Stopped:
            finished = False
        log.sim.power_cut(Random(seed))
        found = reopen(
            log.storage, log.directories, STREAM, RECORDS, acknowledged=log.writer.end_lsn
        )
        assert found.end_lsn == log.writer.end_lsn
        assert log.read_all() == log.payloads
        seal_all(log)
        if finished:
            break
    assert nth > 5


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("written", [None, 10])
def test_a_failing_call_leaves_the_segment_unsealed_or_sealed_never_between(
    forever: bool, written: int | None
) -> None:
    calls = frozenset({"pwritev", "truncate", "datasync"})
    for nth in range(1, 9):
        log = log_of(2)
        log.sim.plan(Failure(calls, nth, errno.ENOSPC, forever=forever, written=written))
        try:
            seal_all(log)
            failed = False
        except OSError:
            failed = True
        log.sim.heal()
        assert log.read_all() == log.payloads
        if not failed:
            break
        log.sim.power_cut(Random(nth))
        assert log.read_all() == log.payloads
        seal_all(log)
    assert nth > 2


def test_an_unsealed_segment_and_garbage_are_said_to_be_unsealed() -> None:
    log = log_of(1)
    with pytest.raises(DamageError, match="no seal"):
        verify_segment(log.storage, log.segments[0].path)
    file = log.storage.create(Path("/spool/garbage"))
    file.pwritev([b"RPLSEG1\0" + Random(1).randbytes(HEADER_BYTES + TRAILER_BYTES)], 0)
    with pytest.raises(ReplicatorError):
        verify_segment(log.storage, Path("/spool/garbage"))
    file.close()


def test_an_editor_who_mends_every_other_sum_is_found_by_the_digest() -> None:
    log = log_of(3)
    (seal,) = seal_all(log)
    path = log.segments[0].path
    forged = Log(SimStorage())
    forged.append(b"forged".ljust(300, b"!"), *log.payloads[1:])
    body = content(forged, path)
    honest = content(log, path)
    assert len(body) == len(honest) - TRAILER_BYTES
    mended = replace(seal, chain=forged.writer.chain)
    file = log.storage.open(path, writable=True)
    file.pwritev([body + pack_seal(mended)], 0)
    file.close()
    with pytest.raises(DamageError, match="the digest of the seal is wrong"):
        verify_segment(log.storage, path)


def test_whatever_stands_behind_the_last_entry_makes_way_for_the_seal() -> None:
    log = log_of(5, segment_bytes=1000)
    file = log.storage.open(log.segments[0].path, writable=True)
    file.pwritev([b"left over from an attempt" * 40], file.size())
    file.close()
    seal_all(log)
    verify_segment(log.storage, log.segments[0].path)
    assert log.read_all() == log.payloads
