# SPDX-License-Identifier: Apache-2.0
"""What Storage promises: the machine's filesystems and the simulated disk answer alike."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.base.mishaps import mishap, reason
from replicator.base.storage import (
    IOV_MAX,
    File,
    Storage,
    SystemStorage,
    read_whole,
    write_all,
    write_durably,
)
from tests.world.faults import Failure
from tests.world.storage import PAGE_BYTES, SimStorage


@dataclass(frozen=True)
class Place:
    """A storage with an empty directory of the test's own."""

    storage: Storage
    directory: Path


@pytest.fixture(params=["system", "simulated"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "system":
        yield Place(SystemStorage(), tmp_path)
        return
    storage = SimStorage()
    storage.make_directory(Path("/data"))
    yield Place(storage, Path("/data"))


def errno_of(action: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as failed:  # noqa: PT011 - the errno is what is compared
        action()
    return failed.value.errno


def write(storage: Storage, path: Path, data: bytes) -> None:
    file = storage.create(path)
    write_all(file, [data], 0)
    file.close()


def test_bytes_come_back_from_where_they_were_written(place: Place) -> None:
    file = place.storage.create(place.directory / "a")
    assert file.path == place.directory / "a"
    assert file.pwritev([b"one", bytearray(b"two"), memoryview(b"three")], 5000) == 11
    assert file.size() == 5011
    assert file.pread(100, 4998) == b"\0\0onetwothree"
    assert file.pread(3, 5003) == b"two"
    assert file.pread(10, 5011) == b""
    assert file.pread(0, 0) == b""
    assert file.pwritev([], 9000) == 0
    assert file.size() == 5011
    file.datasync()
    file.close()
    file.close()


def test_allocated_blocks_are_the_files_own_and_hold_zeroes(place: Place) -> None:
    path = place.directory / "a"
    file = place.storage.create(path)
    file.pwritev([b"one"], 0)
    file.allocate(100_000)
    assert file.size() == 100_000
    assert file.pread(200_000, 0) == b"one" + bytes(99_997)
    assert place.storage.allocated_bytes(path) >= 100_000
    file.close()
    free = place.storage.free_bytes(place.directory)
    assert 0 < free <= place.storage.total_bytes(place.directory)


def test_a_closed_file_and_bad_arguments_are_refused(place: Place) -> None:
    path = place.directory / "a"
    file = place.storage.create(path)
    assert errno_of(lambda: file.pwritev([b"x"] * (IOV_MAX + 1), 0)) == errno.EINVAL
    assert errno_of(lambda: file.truncate(-1)) == errno.EINVAL
    assert errno_of(lambda: file.punch(0, 0)) == errno.EINVAL
    assert errno_of(lambda: file.pread(1, -1)) == errno.EINVAL
    file.close()
    for action in (file.size, lambda: file.pread(1, 0), lambda: file.truncate(0)):
        assert errno_of(action) == errno.EBADF
    reader = place.storage.open(path)
    assert errno_of(lambda: reader.pwritev([b"x"], 0)) == errno.EBADF
    assert errno_of(lambda: reader.truncate(0)) == errno.EINVAL
    assert errno_of(lambda: reader.punch(0, 512)) == errno.EBADF
    reader.close()


def test_what_is_not_there_or_there_already_says_so(place: Place) -> None:
    storage, here = place.storage, place.directory
    write(storage, here / "a", b"x")
    storage.make_directory(here / "d")
    assert errno_of(lambda: storage.create(here / "a")) == errno.EEXIST
    assert errno_of(lambda: storage.create(here / "none" / "a")) == errno.ENOENT
    assert errno_of(lambda: storage.open(here / "none")) == errno.ENOENT
    assert errno_of(lambda: storage.open(here / "d", writable=True)) == errno.EISDIR
    assert errno_of(lambda: storage.unlink(here / "none")) == errno.ENOENT
    assert errno_of(lambda: storage.unlink(here / "d")) == errno.EISDIR
    assert errno_of(lambda: storage.replace(here / "none", here / "a")) == errno.ENOENT
    assert errno_of(lambda: storage.replace(here / "a", here / "none" / "a")) == errno.ENOENT
    assert errno_of(lambda: storage.replace(here / "a", here / "d")) == errno.EISDIR
    assert errno_of(lambda: storage.sync_directory(here / "none")) == errno.ENOENT
    assert errno_of(lambda: storage.sync_directory(here / "a")) == errno.ENOTDIR
    assert errno_of(lambda: storage.make_directory(here / "a")) == errno.EEXIST
    assert errno_of(lambda: storage.make_directory(here / "a" / "b")) in (
        errno.EEXIST,  # of the file in the way
        errno.ENOTDIR,
    )
    assert errno_of(lambda: storage.remove_directory(here / "none")) == errno.ENOENT
    assert errno_of(lambda: storage.remove_directory(here / "a")) == errno.ENOTDIR
    assert errno_of(lambda: storage.remove_directory(here)) == errno.ENOTEMPTY
    assert errno_of(lambda: storage.names(here / "a")) == errno.ENOTDIR
    assert errno_of(lambda: storage.allocated_bytes(here / "none")) == errno.ENOENT
    assert storage.names(here / "none") == []
    assert not storage.exists(here / "none")
    assert not storage.exists(here / "a" / "b")
    assert storage.exists(here / "d")


def test_an_inode_stays_with_its_file(place: Place) -> None:
    storage, here = place.storage, place.directory
    storage.create(here / "one").close()
    storage.create(here / "two").close()
    one, two = storage.inode(here / "one"), storage.inode(here / "two")
    assert 0 < one != two > 0
    storage.replace(here / "one", here / "two")
    assert storage.inode(here / "two") == one
    assert errno_of(lambda: storage.inode(here / "one")) == errno.ENOENT
    storage.unlink(here / "two")
    storage.create(here / "two").close()
    assert storage.inode(here / "two") != one, "also where the filesystem gives its number again"


def test_directories_are_made_with_their_parents_and_removed_when_empty(place: Place) -> None:
    storage, here = place.storage, place.directory
    storage.make_directory(here / "x" / "y" / "z")
    storage.make_directory(here / "x" / "y" / "z")
    assert storage.names(here / "x") == ["y"]
    storage.sync_directory(here / "x" / "y")
    storage.remove_directory(here / "x" / "y" / "z")
    assert storage.names(here / "x" / "y") == []
    assert storage.free_bytes(here) > 0


def test_replace_swaps_the_name_and_open_files_keep_their_content(place: Place) -> None:
    storage, here = place.storage, place.directory
    write(storage, here / "old", b"old")
    write(storage, here / "new", b"new")
    reader = storage.open(here / "old")
    storage.replace(here / "new", here / "old")
    assert reader.pread(9, 0) == b"old"
    reader.close()
    assert storage.names(here) == ["old"]
    assert read_whole(storage, here / "old", 9) == b"new"
    reader = storage.open(here / "old")
    storage.unlink(here / "old")
    assert reader.pread(9, 0) == b"new"
    assert storage.names(here) == []
    reader.close()


def test_small_files_are_replaced_durably_and_read_within_a_bound(place: Place) -> None:
    path = place.directory / "state.json"
    write(place.storage, path.with_name("state.json.new"), b"stray")
    for content in (b"{}", b"{1}"):
        write_durably(place.storage, path, content)
        assert read_whole(place.storage, path, 3) == content
    assert errno_of(lambda: read_whole(place.storage, path, 2)) == errno.EFBIG
    assert place.storage.names(place.directory) == ["state.json"]


def test_holes_take_no_room_and_show_as_no_data(place: Place) -> None:
    storage, path = place.storage, place.directory / "image"
    file = storage.create(path)
    file.truncate(64 * PAGE_BYTES)
    assert storage.allocated_bytes(path) == 0
    assert file.data_ranges(0, 1 << 40) == []
    write_all(file, [b"x" * (4 * PAGE_BYTES)], 8 * PAGE_BYTES)
    file.datasync()
    assert storage.allocated_bytes(path) == 4 * PAGE_BYTES
    assert file.data_ranges(0, 1 << 40) == [(8 * PAGE_BYTES, 12 * PAGE_BYTES)]
    assert file.data_ranges(9 * PAGE_BYTES + 7, 10 * PAGE_BYTES) == [
        (9 * PAGE_BYTES + 7, 10 * PAGE_BYTES)
    ]
    file.punch(9 * PAGE_BYTES, PAGE_BYTES + 5)
    file.punch(100 * PAGE_BYTES, PAGE_BYTES)  # beyond the end: nothing happens
    assert file.size() == 64 * PAGE_BYTES
    assert storage.allocated_bytes(path) == 3 * PAGE_BYTES
    assert file.data_ranges(0, 1 << 40) == [
        (8 * PAGE_BYTES, 9 * PAGE_BYTES),
        (10 * PAGE_BYTES, 12 * PAGE_BYTES),
    ]
    assert file.pread(6, 10 * PAGE_BYTES) == b"\0\0\0\0\0x"
    file.close()


@dataclass(frozen=True)
class Step:
    """One change of a file."""

    verb: str
    offset: int
    length: int

    def do(self, file: File) -> None:
        if self.verb == "write":
            data = bytes([1 + self.offset % 255]) * self.length
            assert file.pwritev([data], self.offset) == self.length
        elif self.verb == "punch":
            file.punch(self.offset, self.length)
        else:
            file.truncate(self.offset)


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(["write", "punch", "truncate"]),
        st.one_of(st.integers(0, 20_000), st.integers(0, 5).map(lambda n: n * PAGE_BYTES)),
        st.one_of(st.integers(1, 9_000), st.integers(1, 3).map(lambda n: n * PAGE_BYTES)),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_any_changes_leave_both_with_the_same_file(changes: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        simulated = SimStorage().create(Path("/file"))
        real = SystemStorage().create(Path(directory) / "file")
        for change in changes:
            change.do(simulated)
            change.do(real)
            assert simulated.size() == real.size()
        content = real.pread(1 << 20, 0)
        assert simulated.pread(1 << 20, 0) == content
        for file in (simulated, real):
            position = 0
            for low, high in file.data_ranges(0, 1 << 20):
                assert position <= low < high <= len(content)
                assert not any(content[position:low])
                position = high
            assert not any(content[position:])
        simulated.close()
        real.close()


# -- where it was


def failing(place: Place) -> Iterator[tuple[str, Path, int | None, Callable[[], object]]]:
    """Calls that fail on either, each with what is said of it."""
    storage, there = place.storage, place.directory / "a"
    write(storage, there, b"1" * 100)
    read_only, closed = storage.open(there), storage.open(there, writable=True)
    closed.close()
    missing = place.directory / "none" / "b"
    yield "reading", there, 70, lambda: closed.pread(10, 70)
    yield "writing", there, 50, lambda: read_only.pwritev([b"x"], 50)
    yield "writing", there, 0, lambda: write_all(read_only, [b"x"], 0)
    yield "punching a hole", there, 10, lambda: read_only.punch(10, 20)
    yield "setting the size", there, None, lambda: read_only.truncate(7)
    yield "creating", there, None, lambda: storage.create(there)
    yield "creating", missing, None, lambda: storage.create(missing)
    yield "opening", missing, None, lambda: storage.open(missing)
    yield "listing", there, None, lambda: storage.names(there)
    yield "making the directory", there, None, lambda: storage.make_directory(there)
    yield "renaming", missing, None, lambda: storage.replace(missing, there)
    yield "removing", missing, None, lambda: storage.unlink(missing)
    yield "syncing the directory", missing, None, lambda: storage.sync_directory(missing)
    yield "looking", missing, None, lambda: storage.allocated_bytes(missing)
    yield "reading", there, None, lambda: read_whole(storage, there, 10)


def test_an_error_names_the_path_the_operation_and_the_offset(place: Place) -> None:
    for doing, path, offset, call in failing(place):
        with pytest.raises(OSError) as failed:  # noqa: PT011 - what it says is compared
            call()
        said = mishap(failed.value).message
        assert said.startswith(f"{path}: {doing}"), said
        assert said.count(str(path)) == 1
        assert said.endswith(reason(failed.value))
        if offset is not None:
            assert f"{doing} at offset {offset}: " in said


@pytest.mark.parametrize(
    ("call", "doing"), [("pread", "reading at offset 0"), ("datasync", "syncing")]
)
def test_a_planned_failure_has_a_place_as_well(call: str, doing: str) -> None:
    storage = SimStorage()
    storage.make_directory(Path("/data"))
    write(storage, Path("/data/a"), b"1")
    file = storage.open(Path("/data/a"), writable=True)
    storage.plan(Failure(frozenset([call]), 1, errno.EIO))
    with pytest.raises(OSError) as failed:  # noqa: PT011 - what it says is compared
        file.pread(1, 0) if call == "pread" else file.datasync()
    assert mishap(failed.value).message == f"/data/a: {doing}: Input/output error"
