# SPDX-License-Identifier: Apache-2.0
"""The dump that people read: right on good files, and a help on bad ones."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journal.dump import describe, inspect_path
from journal.record import NO_DISK, Record, RecordType, encode_header
from replicator.base.errors import NotFoundError
from replicator.base.storage import SystemStorage
from tests.journal import golden
from tests.journal.logs import Inbox, Log, payloads_of


def dump(path: Path) -> str:
    return "\n".join(inspect_path(path))


def test_a_log_is_shown_record_by_record(tmp_path: Path) -> None:
    path = tmp_path / "log.seg"
    path.write_bytes(golden.read("log-sealed.hex"))
    text = dump(path)
    assert f"{path}: log of group 'golden', stream {golden.STREAM.stream}, ordinal 7" in text
    assert (
        f"{golden.FIRST_LSN}  record 1  2026-03-01T02:03:04.000005000Z  sync-begin  disk 0" in text
    )
    assert "record 4  2026-03-01T02:03:04.000005003Z  write  disk 0  512 bytes at 4096" in text
    assert "record 5  2026-03-01T02:03:04.000005004Z  zero  disk 0  65536 bytes at 8192" in text
    assert "kind=application" in text
    assert "label='before upgrade'" in text
    assert "sealed: 6 entries" in text
    assert "bytes left" not in text


def test_an_inbox_is_shown_frame_by_frame(tmp_path: Path) -> None:
    path = tmp_path / "inbox.seg"
    path.write_bytes(golden.read("inbox.hex"))
    text = dump(path)
    assert f"frame of LSN {golden.FIRST_LSN} to {golden.FIRST_LSN + 1000}, 11 bytes" in text


@pytest.mark.parametrize("kind", [Log, Inbox])
def test_a_directory_shows_all_segments_and_where_the_log_breaks_off(
    tmp_path: Path, kind: type[Log]
) -> None:
    log = kind(SystemStorage(), tmp_path, segment_bytes=1000)
    for payload in payloads_of([800] * 4):
        log.append(payload)
    log.writer.close()
    assert dump(tmp_path).count("end of the good entries") == 4
    log.segments[1].path.unlink()
    assert f"nothing holds LSN {log.ends[1][0]} to {log.ends[2][0]}" in dump(tmp_path)


def test_damage_is_named_with_its_offset_and_what_stands_behind_it(tmp_path: Path) -> None:
    log = Log(SystemStorage(), tmp_path)
    log.append(*payloads_of([100] * 3))
    log.sync()
    log.append(*payloads_of([100] * 2))
    log.writer.close()
    path = log.segments[0].path
    data = bytearray(path.read_bytes())
    data[192 + 164 + 100] ^= 1
    path.write_bytes(data)
    text = dump(path)
    assert "payload fails its checksum at LSN 164 (file offset 356, 656 bytes left)" in text
    assert (
        f"behind it: 3 good entries; the segment states that it was durable up to {3 * 164}" in text
    )


def test_strings_from_a_file_cannot_play_tricks_on_the_terminal(tmp_path: Path) -> None:
    log = Log(SystemStorage(), tmp_path)
    evil = b"\x81\xa5label\xa9\x1b[2J\x1b]0;!"
    for body in (evil, b"\xc1", b"\x91" * 3000, b"\xa2\xff\xfe", b""):
        header, chain = encode_header(
            RecordType.CUT, NO_DISK, 0, 0, 0, (1 << 64) - 1, body, 0, log.writer.chain
        )
        log.writer.append([header, body], len(header) + len(body), chain)
    log.writer.close()
    text = dump(tmp_path)
    assert "\x1b" not in text
    assert r"label='\x1b[2J" in text
    assert "no msgpack" in text
    assert text.count("cut  ") == 5


def test_what_is_not_there_or_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        dump(tmp_path / "none")
    assert dump(tmp_path) == f"{tmp_path}: no segments"
    (tmp_path / "empty.seg").write_bytes(b"")
    assert "cut short" in dump(tmp_path)


@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1a"])
@pytest.mark.parametrize("depth", [7, 300, 450, 700, 5000])
def test_a_body_of_any_depth_is_shown(nest: bytes, depth: int) -> None:
    body = nest * depth + b"\xc0"
    assert len(describe(Record(RecordType.CUT, NO_DISK, 0, 0, 1, 1, body))) < 200


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(golden.files())), st.integers(0, 1 << 32))
def test_no_garbage_makes_it_fail(
    tmp_path_factory: pytest.TempPathFactory, name: str, seed: int
) -> None:
    rng = Random(seed)
    data = bytearray(golden.read(name))
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(data))
        data[at : at + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 9))
    path = tmp_path_factory.getbasetemp() / f"garbage-{seed}.seg"
    path.write_bytes(data)
    assert str(path) in dump(path)
    path.unlink()
