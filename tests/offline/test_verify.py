# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to a history is found, and named with its file."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journal.record import HEADER as RECORD_HEADER
from journal.record import HEADER_BYTES as RECORD_HEADER_BYTES
from journal.record import RecordType
from journal.segment import HEADER_BYTES, segment_name
from receiver.check.places import find_histories
from receiver.check.verify import HistoryVerification
from replicator.base.errors import NotFoundError
from replicator.base.storage import SystemStorage
from tests.offline.copies import COMPACTED, LONG, BareHistory
from tests.receiver.history_of_seed import live
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World

ANY = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@pytest.fixture
def bare(tmp_path: Path) -> BareHistory:
    return BareHistory(tmp_path, LONG)


@pytest.mark.parametrize("seed", range(100, 124))
def test_a_history_that_lived_through_anything_has_no_fault(seed: int) -> None:
    world = live(seed)
    (place,) = find_histories(world.storage, GROUP_DIRECTORY)
    verification = HistoryVerification(world.storage, place)
    reports = list(verification.run())
    assert verification.faults == []
    assert set(verification.points) == {point.sequence for point in world.group.points.all}
    assert sum(report.batches for report in reports) >= len(verification.points)


@settings(max_examples=150, deadline=None, suppress_health_check=ANY)
@given(st.data())
def test_any_flipped_byte_of_a_sealed_segment_is_found_in_its_file(
    tmp_path: Path, data: st.DataObject
) -> None:
    bare = BareHistory(tmp_path, data.draw(st.sampled_from([LONG, COMPACTED])))
    _, reports = bare.verify()
    path = data.draw(st.sampled_from([each.path for each in reports if each.is_sealed]))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    verification, _ = bare.verify()
    assert path in {fault.file for fault in verification.faults}


@settings(max_examples=100, deadline=None, suppress_health_check=ANY)
@given(st.data())
def test_a_flipped_byte_of_a_payload_is_named_with_its_record(
    tmp_path: Path, data: st.DataObject
) -> None:
    bare = BareHistory(tmp_path, LONG)
    path = data.draw(st.sampled_from(bare.segments[:-1]))
    content = bytearray(path.read_bytes())
    images = images_of(bytes(content))
    if not images:
        return
    offset, size = data.draw(st.sampled_from(images))
    content[offset + data.draw(st.integers(0, size - 1))] ^= 0x40
    path.write_bytes(content)
    verification, reports = bare.verify()
    (bad,) = [fault for fault in verification.faults if "digest" not in fault.problem]
    assert (bad.file, bad.offset) == (path, offset - RECORD_HEADER_BYTES)
    assert "before-image of batch" in bad.problem
    assert f"{size + RECORD_HEADER_BYTES} bytes cannot be read" in bad.problem
    (report,) = [each for each in reports if each.path == path]
    whole = {each.path: each for each in BareHistory(tmp_path / "whole", LONG).verify()[1]}
    twin = next(each for name, each in whole.items() if name.name == path.name)
    assert (report.batches, report.images) == (twin.batches, twin.images - 1)


def images_of(content: bytes) -> list[tuple[int, int]]:
    """(offset, size) of the payloads of images in a segment."""
    found, at = [], HEADER_BYTES
    while at + RECORD_HEADER_BYTES <= len(content) and content[at : at + 8] != b"RPLSEAL1":
        kind, _, disk, size, *_ = RECORD_HEADER.unpack_from(content, at)
        if kind in (RecordType.WRITE, RecordType.PACKED_WRITE) and disk != 65535:
            found.append((at + RECORD_HEADER_BYTES, size))
        elif kind not in tuple(RecordType):
            break
        at += RECORD_HEADER_BYTES + size
    return found


# -- a table of what can be done to whole segments, and what is said of it


def _remove_middle(bare: BareHistory) -> str:
    bare.segments[2].unlink()
    return "in front of it are missing"


def _remove_first_and_forge_beginning(bare: BareHistory) -> str:
    """The oldest may be gone by retention; but none that is not the first can play it."""
    second = bare.segments[1]
    content = second.read_bytes()
    bare.segments[0].unlink()
    second.unlink()
    (second.parent / segment_name(0)).write_bytes(content)
    return "segment of another place"


def _truncate_sealed(bare: BareHistory) -> str:
    os.truncate(bare.segments[2], bare.segments[2].stat().st_size - 200)
    return "no seal, or a broken one"


def _truncate_to_half(bare: BareHistory) -> str:
    os.truncate(bare.segments[2], bare.segments[2].stat().st_size // 2)
    return "no seal, or a broken one"


def _truncate_header(bare: BareHistory) -> str:
    os.truncate(bare.segments[2], 100)
    return "cut short"


def _empty(bare: BareHistory) -> str:
    os.truncate(bare.segments[2], 0)
    return "cut short"


def _swap(bare: BareHistory) -> str:
    one, other = bare.segments[1:3]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return "segment of another place"


def _duplicate(bare: BareHistory) -> str:
    one = bare.segments[2]
    shutil.copy(one, one.parent / segment_name(int(one.stem, 16) + 64))
    return "segment of another place"


def _append_bytes(bare: BareHistory) -> str:
    with bare.segments[2].open("ab") as file:
        file.write(b"more")
    return "no seal, or a broken one"


def _reseal_with_other_content(bare: BareHistory) -> str:
    """The digest of the changed bytes is right, but it is not the one that the next links to."""
    path = bare.segments[2]
    content = bytearray(path.read_bytes())
    content[56] ^= 1  # created_ns: nothing but the header's sum and the digest cover it
    _resum_header(content)
    _redigest(content)
    path.write_bytes(content)
    return f"does not follow the digest of {path.name}"


def _resum_header(content: bytearray) -> None:
    from xxhash import xxh3_64_intdigest

    content[184:192] = xxh3_64_intdigest(bytes(content[:184])).to_bytes(8, "little")


def _redigest(content: bytearray) -> None:
    from xxhash import xxh3_64_intdigest

    content[-56:-24] = hashlib.blake2b(content[:-56], digest_size=32).digest()
    content[-8:] = xxh3_64_intdigest(bytes(content[-128:-8])).to_bytes(8, "little")


MUTATIONS = [
    _remove_middle,
    _remove_first_and_forge_beginning,
    _truncate_sealed,
    _truncate_to_half,
    _truncate_header,
    _empty,
    _swap,
    _duplicate,
    _append_bytes,
    _reseal_with_other_content,
]


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_what_is_done_to_a_segment_is_found(
    bare: BareHistory, mutate: Callable[[BareHistory], str]
) -> None:
    assert bare.faults() == []
    expected = mutate(bare)
    faults = bare.faults()
    assert any(expected in fault for fault in faults), faults
    assert all(str(bare.place.folder) in fault for fault in faults)


def test_two_faults_are_both_found(bare: BareHistory) -> None:
    for path in bare.segments[1:3]:
        content = bytearray(path.read_bytes())
        content[400] ^= 1
        path.write_bytes(content)
    verification, _ = bare.verify()
    assert {fault.file for fault in verification.faults} == set(bare.segments[1:3])


def test_a_segment_of_another_group_is_found(bare: BareHistory, tmp_path: Path) -> None:
    path = bare.segments[1]
    content = bytearray(path.read_bytes())
    content[72] ^= 1
    _resum_header(content)
    _redigest(content)
    path.write_bytes(content)
    assert any("is a segment of group" in fault for fault in bare.faults())


def test_a_compacted_history_is_good_and_says_what_it_stands_for(tmp_path: Path) -> None:
    verification, reports = BareHistory(tmp_path, COMPACTED).verify()
    assert verification.faults == []
    assert any("compacted: stands for" in note for each in reports for note in each.notes)


def test_a_torn_end_is_no_fault_and_is_said(tmp_path: Path) -> None:
    world = World(limits=SMALL)
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"x" * 4096)
    world.cut()
    world.settle()
    (place,) = find_histories(world.storage, GROUP_DIRECTORY)
    newest = place.segments(world.storage)[-1].path
    file = world.storage.open(newest, writable=True)
    file.pwritev([b"half a record"], file.size())
    verification = HistoryVerification(world.storage, place)
    (report,) = verification.run()
    assert verification.faults == []
    (note,) = report.notes
    assert note.startswith("13 bytes at its end were never durable")


def test_verifying_changes_nothing(bare: BareHistory) -> None:
    os.truncate(bare.segments[-1], bare.segments[-1].stat().st_size - 5)
    (bare.place.folder / "0000000000000000.seg.new").write_bytes(b"left over")
    before = {path: path.read_bytes() for path in bare.place.folder.iterdir()}
    _, reports = bare.verify()
    assert {path: path.read_bytes() for path in bare.place.folder.iterdir()} == before
    assert any("compaction that was interrupted" in note for each in reports for note in each.notes)


def test_where_there_is_no_history_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no history"):
        find_histories(SystemStorage(), tmp_path)
    with pytest.raises(NotFoundError, match="no such file"):
        find_histories(SystemStorage(), tmp_path / "absent")


def test_every_place_that_a_person_may_name_leads_to_the_history(tmp_path: Path) -> None:
    bare = BareHistory(tmp_path / "data" / "groups", LONG)
    place = bare.place
    for path in (tmp_path / "data", bare.group_dir, place.directory, place.folder):
        (found,) = find_histories(SystemStorage(), path)
        assert found.folder == place.folder
        assert found.data_dir == tmp_path / "data"
