# SPDX-License-Identifier: Apache-2.0
"""A log on a real filesystem whose power is cut: what was synced is there, the rest may go."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from journal.appender import AppendError
from journal.format import RECORDS
from journal.reopen import reopen
from replicator.base.storage import SystemStorage
from tests.journal.logs import CHAIN, STREAM, Log
from tests.world.powercut import FILESYSTEMS, PowerCutDisk, power_cut_disk, why_not


@pytest.fixture(params=FILESYSTEMS)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PowerCutDisk]:
    if reason := why_not(request.param):
        pytest.skip(reason)
    with power_cut_disk(request.param, tmp_path) as made:
        yield made


def test_what_was_synced_survives_and_the_log_goes_on_after_each_cut(disk: PowerCutDisk) -> None:
    rng = Random(3)
    log = Log(SystemStorage(), disk.path / "g", segment_bytes=20_000)
    lost = 0
    for _ in range(5):
        for _ in range(rng.randint(1, 8)):
            log.append(*[rng.randbytes(rng.randint(1, 6000)) for _ in range(rng.randint(1, 5))])
            if rng.getrandbits(1):
                log.sync()
        log.append(rng.randbytes(30_000))  # never synced
        written = log.writer.end_lsn
        log.writer.close()
        disk.cut()
        found = reopen(
            log.storage,
            log.directories,
            STREAM,
            RECORDS,
            start_lsn=0,
            chain=CHAIN,
            acknowledged=log.durable,
        )
        lost += found.end_lsn < written
        log.go_on(found)
        assert log.read_all() == log.payloads
    assert lost > 0  # else the cut was none
    log.writer.close()


def test_without_a_sync_nothing_was_promised_and_opening_finds_a_clean_beginning(
    disk: PowerCutDisk,
) -> None:
    log = Log(SystemStorage(), disk.path / "g")
    log.append(b"x" * 50_000)
    log.writer.close()
    disk.cut()
    found = reopen(log.storage, log.directories, STREAM, RECORDS, start_lsn=0, chain=CHAIN)
    assert found.end_lsn in (0, log.writer.end_lsn)


def test_when_the_power_is_gone_an_append_fails_and_a_sync_condemns(disk: PowerCutDisk) -> None:
    log = Log(SystemStorage(), disk.path / "g")
    log.append(b"durable")
    log.sync()
    log.append(b"not yet")
    disk.shut_down()
    with pytest.raises(OSError) as failed:  # noqa: PT011 - the errno is the point
        log.writer.sync()
    assert failed.value.errno == errno.EIO
    with pytest.raises(AppendError):
        log.append(b"never")
    log.writer.close()
    disk.unmount()
    disk.mount()
    found = reopen(log.storage, log.directories, STREAM, RECORDS, acknowledged=log.durable)
    assert found.end_lsn >= log.durable
