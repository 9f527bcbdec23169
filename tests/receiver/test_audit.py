# SPDX-License-Identifier: Apache-2.0
"""The audit: every change to it is found and named; what a crash leaves is not taken for one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from receiver.audit.chain import BREAK_ORDER, CUT_ORDER, Fact, Head, Link, Seen, digest_of
from receiver.audit.log import AuditLog, open_audit, read_entries, verify_audit
from replicator.base.storage import SystemStorage
from tests.world.faults import Failure
from tests.world.storage import SimStorage

STORAGE = SystemStorage()
NOW_NS = 1_700_000_000_000_000_000


def opened(folder: Path, kept: Link | None = None, file_bytes_max: int = 900) -> AuditLog:
    return open_audit(STORAGE, folder, lambda: NOW_NS, kept=kept, file_bytes_max=file_bytes_max)


def written(folder: Path, count: int = 9) -> Link:
    """Some files with `count` entries."""
    log = opened(folder)
    for number in range(count):
        log.append(Fact("rollback", "web", f'{{"to": "#{number}"}}', 0, 7, "started"))
    log.close()
    return log.link


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def lines(folder: Path) -> list[bytes]:
    return [line for file in files(folder) for line in file.read_bytes().splitlines(keepends=True)]


def test_entries_are_read_as_they_were_written_over_several_files(tmp_path: Path) -> None:
    written(tmp_path)
    assert len(files(tmp_path)) > 2
    found = list(read_entries(STORAGE, tmp_path))
    assert [entry.sequence for entry in found] == list(range(1, 10))
    assert (found[3].order, found[3].object, found[3].argument) == (
        "rollback",
        "web",
        '{"to": "#3"}',
    )
    assert (found[3].uid, found[3].pid, found[3].outcome) == (0, 7, "started")
    assert found[3].time == "2023-11-14T22:13:20.000000Z"
    walk = verify_audit(STORAGE, tmp_path)
    assert (walk.breaks, walk.entries, walk.last.sequence) == ([], 9, 9)


def test_the_chain_goes_on_after_opening_again(tmp_path: Path) -> None:
    end = written(tmp_path)
    log = opened(tmp_path, kept=end)
    assert (log.breaks, log.link) == ([], end)
    log.append(Fact("restore", "db"), Seen({"web": Head(9, "ab")}, {"web": {5: "cd"}}))
    log.close()
    walk = verify_audit(STORAGE, tmp_path)
    assert (walk.breaks, walk.last) == ([], log.link)
    assert list(read_entries(STORAGE, tmp_path))[-1].heads == {"web": Head(9, "ab")}
    assert list(read_entries(STORAGE, tmp_path))[-1].rewritten == {"web": {5: "cd"}}


def test_a_line_can_be_checked_by_hand(tmp_path: Path) -> None:
    written(tmp_path, 2)
    first, second = (json.loads(line) for line in lines(tmp_path))
    body = lines(tmp_path)[1].rsplit(b',"digest":', 1)[0]
    assert second["digest"] == digest_of(body)
    assert second["previous"] == first["digest"]
    assert first["previous"] == "0" * 64


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_flipped_byte_is_found_in_its_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("audit")
    end = written(folder, 6)
    file = data.draw(st.sampled_from(files(folder)))
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    walk = verify_audit(STORAGE, folder, end)
    assert walk.breaks
    assert walk.breaks[0].file == file.name
    assert walk.breaks[0].offset <= at
    assert len(walk.breaks) <= 3


def _put(folder: Path, kept: list[bytes]) -> None:
    """All lines in one file."""
    for file in files(folder):
        file.unlink()
    (folder / "0000000000000001.jsonl").write_bytes(b"".join(kept))


def _remove_line(folder: Path) -> None:
    all_lines = lines(folder)
    _put(folder, all_lines[:3] + all_lines[4:])


def _repeat_line(folder: Path) -> None:
    all_lines = lines(folder)
    _put(folder, [*all_lines[:4], all_lines[3], *all_lines[4:]])


def _swap_lines(folder: Path) -> None:
    all_lines = lines(folder)
    _put(folder, [*all_lines[:3], all_lines[4], all_lines[3], *all_lines[5:]])


def _forge_line(folder: Path) -> None:
    """With a digest of its own that is right."""
    all_lines = lines(folder)
    body = all_lines[3].rsplit(b',"digest":', 1)[0].replace(b"web", b"dev")
    all_lines[3] = body + b',"digest":"' + digest_of(body).encode() + b'"}\n'
    _put(folder, all_lines)


def _remove_file(folder: Path) -> None:
    files(folder)[1].unlink()


def _remove_first_file(folder: Path) -> None:
    files(folder)[0].unlink()


def _cut_end(folder: Path) -> None:
    _put(folder, lines(folder)[:-2])


def _remove_all(folder: Path) -> None:
    for file in files(folder):
        file.unlink()


MUTATIONS = [
    _remove_line,
    _repeat_line,
    _swap_lines,
    _forge_line,
    _remove_file,
    _remove_first_file,
    _cut_end,
    _remove_all,
]


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_what_was_done_to_it_is_named_and_never_repaired(
    tmp_path: Path, mutate: Callable[[Path], None]
) -> None:
    end = written(tmp_path)
    mutate(tmp_path)
    before = {file.name: file.read_bytes() for file in files(tmp_path)}
    found = verify_audit(STORAGE, tmp_path, end).breaks
    assert found
    log = opened(tmp_path, kept=end)
    assert log.breaks == found
    log.append(Fact("restore"))
    log.close()
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    entries = list(read_entries(STORAGE, tmp_path))
    named = [(e.object, e.argument, e.message) for e in entries if e.order == BREAK_ORDER]
    assert named == [(each.file, str(each.offset), each.problem) for each in found]
    assert entries[-1].order == "restore"
    again = opened(tmp_path, kept=log.link)  # a break is named once
    assert again.link == log.link
    assert [each.problem for each in again.breaks[: len(found)]] == [e.problem for e in found]
    again.close()


@pytest.mark.parametrize("left", [1, 40, 200])
def test_a_torn_last_line_is_cut_and_that_is_said(tmp_path: Path, left: int) -> None:
    end = written(tmp_path, 2)
    file = files(tmp_path)[-1]
    whole = file.read_bytes()
    line = lines(tmp_path)[-1]
    file.write_bytes(whole + line[:left])
    log = opened(tmp_path, kept=end)
    assert log.breaks == []
    log.close()
    assert file.read_bytes().startswith(whole)
    last = list(read_entries(STORAGE, tmp_path))[-1]
    assert (last.order, last.object, last.argument) == (CUT_ORDER, file.name, str(len(whole)))
    assert f"{left} bytes" in last.message
    assert verify_audit(STORAGE, tmp_path, log.link).breaks == []


def test_a_last_line_of_which_a_part_was_never_written_is_torn(tmp_path: Path) -> None:
    end = written(tmp_path, 2)
    file = files(tmp_path)[-1]
    line = lines(tmp_path)[-1]
    file.write_bytes(file.read_bytes() + bytes(100) + line[100:])
    log = opened(tmp_path, kept=end)
    log.close()
    assert log.breaks == []
    assert verify_audit(STORAGE, tmp_path, log.link).breaks == []


def test_an_entry_that_a_full_disk_refuses_is_not_there() -> None:
    storage, folder = SimStorage(capacity_bytes=64_000), Path("/data/audit")
    log = open_audit(storage, folder, lambda: NOW_NS)
    log.append(Fact("rollback"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        log.append(Fact("restore", argument="x" * 90_000))
    log.append(Fact("view open"))
    log.close()
    assert [entry.order for entry in read_entries(storage, folder)] == ["rollback", "view open"]
    assert verify_audit(storage, folder).breaks == []


APPEND_FOR_EVER = """
import sys
from pathlib import Path
from random import Random
from receiver.audit.chain import Fact
from receiver.audit.log import open_audit
from replicator.base.storage import SystemStorage
log = open_audit(SystemStorage(), Path(sys.argv[1]), lambda: 1, file_bytes_max=20000)
while True:
    link = log.append(Fact("rollback", "web", "x" * 700))
    print(link.sequence, link.digest, flush=True)
"""


def test_kill_in_the_middle_of_appends_loses_no_entry_that_was_told(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    kept = Link()
    for told in (3, 11, 20):
        process = subprocess.Popen(
            [sys.executable, "-c", APPEND_FOR_EVER, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert process.stdout is not None
        heard = [process.stdout.readline() for _ in range(told)]
        process.send_signal(signal.SIGKILL)
        heard += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        sequence, digest = [line for line in heard if line.endswith("\n")][-1].split()
        kept = Link(int(sequence), digest)
        log = opened(folder, kept=kept)
        assert log.breaks == []
        assert log.link.sequence >= kept.sequence
        log.close()
    assert verify_audit(STORAGE, folder, kept).breaks == []


@pytest.mark.parametrize("seed", range(40))
def test_a_power_cut_in_the_middle_of_an_append_is_no_break(seed: int) -> None:
    """Whatever it leaves of the line, the pages of the file in any subset."""
    rng = Random(seed)
    storage, folder = SimStorage(), Path("/data/audit")
    log = open_audit(storage, folder, lambda: NOW_NS, file_bytes_max=40_000)
    for _ in range(rng.randint(1, 5)):
        log.append(Fact("rollback", argument="x" * rng.randint(1, 20_000)))
    told = log.link
    storage.plan(Failure(frozenset(["datasync"]), 1, errno.EIO, under=folder))
    with pytest.raises(OSError, match="Input/output"):
        log.append(Fact("restore", argument="y" * rng.randint(1, 30_000)))
    with pytest.raises(OSError, match="could not be made durable"):
        log.append(Fact("view open"))
    storage.heal()
    storage.power_cut(rng)
    for _ in range(2):
        again = open_audit(storage, folder, lambda: NOW_NS, kept=told)
        assert again.breaks == []
        assert again.link.sequence >= told.sequence
        again.append(Fact("view open"))
        again.close()
    walk = verify_audit(storage, folder, again.link)
    assert walk.breaks == []
    assert [entry.order for entry in read_entries(storage, folder)].count("view open") == 2


def test_a_line_that_was_whole_once_is_never_taken_for_a_torn_one(tmp_path: Path) -> None:
    end = written(tmp_path, 2)
    file = files(tmp_path)[-1]
    os.truncate(file, file.stat().st_size - 9)
    before = file.read_bytes()
    assert verify_audit(STORAGE, tmp_path, end).breaks
    log = opened(tmp_path, kept=end)
    log.append(Fact("restore"))
    log.close()
    assert log.breaks
    assert file.read_bytes() == before


def test_an_audit_that_a_crash_left_torn_is_good(tmp_path: Path) -> None:
    end = written(tmp_path, 2)
    file = files(tmp_path)[-1]
    file.write_bytes(file.read_bytes() + b'{"sequence":3,"ti')
    assert verify_audit(STORAGE, tmp_path, end).breaks == []
