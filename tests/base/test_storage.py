# SPDX-License-Identifier: Apache-2.0
"""What SystemStorage does beyond the contract that it shares with the simulated disk
(tests/world/test_storage_contract.py), and what a machine without hole punching gets."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from contextlib import closing
from pathlib import Path

import pytest

from replicator.base import storage
from replicator.base.storage import IOV_MAX, SystemStorage, write_all, write_durably
from tests.world.storage import Failure, SimStorage


class _NoFallocate:
    """A libc on a filesystem that cannot punch, or that fails otherwise."""

    def __init__(self, code: int) -> None:
        self._code = code

    def fallocate(self, *_arguments: int) -> int:
        ctypes.set_errno(self._code)
        return -1


@pytest.fixture
def unable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_libc", _NoFallocate(errno.EOPNOTSUPP))


@pytest.mark.usefixtures("unable")
@pytest.mark.parametrize(
    ("offset", "length", "left"),
    [
        (2, 3, b"ab\0\0\0fgh"),
        (0, 8, bytes(8)),
        (6, 1 << 40, b"abcdef\0\0"),  # the size stays
        (8, 100, b"abcdefgh"),
        (100, 100, b"abcdefgh"),
    ],
)
def test_where_nothing_can_be_punched_zeroes_are_written_and_the_size_stays(
    tmp_path: Path, offset: int, length: int, left: bytes
) -> None:
    with closing(SystemStorage().create(tmp_path / "image")) as file:
        write_all(file, [b"abcdefgh"], 0)
        file.punch(offset, length)
        assert file.pread(100, 0) == left


def test_another_failure_to_punch_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_libc", _NoFallocate(errno.EIO))
    with closing(SystemStorage().create(tmp_path / "image")) as file:
        write_all(file, [b"abcdefgh"], 0)
        with pytest.raises(OSError, match="image") as failed:
            file.punch(0, 4)
        assert failed.value.errno == errno.EIO
        assert file.pread(8, 0) == b"abcdefgh"


def test_files_and_directories_are_for_their_owner_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        SystemStorage().make_directory(tmp_path / "a" / "b")
        SystemStorage().create(tmp_path / "a" / "b" / "file").close()
    finally:
        os.umask(mask)
    for path, mode in (("a", 0o700), ("a/b", 0o700), ("a/b/file", 0o600)):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == mode


def test_a_new_file_is_never_made_through_a_link_that_waits_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        SystemStorage().create(tmp_path / "file")
    assert not (tmp_path / "elsewhere").exists()


def test_handles_are_not_inherited(tmp_path: Path) -> None:
    with closing(SystemStorage().create(tmp_path / "file")):
        held = {
            int(name): os.readlink(f"/proc/self/fd/{name}")
            for name in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{name}")
        }
        (mine,) = (number for number, path in held.items() if path == str(tmp_path / "file"))
        assert not os.get_inheritable(mine)


@pytest.mark.parametrize("written", [1, 2, 3, 5, 8])
def test_writing_all_goes_on_after_every_short_write(written: int) -> None:
    disk = SimStorage()
    parts = [b"", b"abc", b"", b"defgh", b"i"] * IOV_MAX
    disk.plan(
        *(
            Failure(frozenset({"pwritev"}), nth, errno.EINTR, written=written)
            for nth in (1, 2, 4, 5)
        )
    )
    with closing(disk.create(Path("/file"))) as file:
        assert write_all(file, parts, 7) == 9 * IOV_MAX
        assert file.pread(1 << 20, 0) == bytes(7) + b"abcdefghi" * IOV_MAX
    assert disk.calls["pwritev"] > 4


def test_a_write_without_progress_is_an_error_not_a_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(SystemStorage().create(tmp_path / "file")) as file:
        monkeypatch.setattr(file, "pwritev", lambda _buffers, _offset: 0)
        with pytest.raises(OSError, match="no progress"):
            write_all(file, [b"abc"], 0)


@pytest.mark.parametrize("call", ["create", "pwritev", "datasync", "replace", "unlink"])
def test_a_durable_write_that_fails_leaves_the_old_file_and_works_the_next_time(
    call: str,
) -> None:
    disk, path = SimStorage(), Path("/state.json")
    write_durably(disk, path, b"old")
    disk.create(path.with_name("state.json.new")).close()  # of an earlier crash
    disk.plan(Failure(frozenset({call}), 1, errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write_durably(disk, path, b"new")
    assert storage.read_whole(disk, path, 9) == b"old"
    disk.heal()
    write_durably(disk, path, b"new")
    assert storage.read_whole(disk, path, 9) == b"new"
    assert disk.is_synced(path)
    assert disk.names(Path("/")) == ["state.json"]


def test_a_write_that_fails_names_its_file() -> None:
    with (
        closing(SystemStorage().open(Path("/dev/full"), writable=True)) as file,
        pytest.raises(OSError, match="No space left on device") as caught,
    ):
        file.pwritev([b"x"], 0)
    assert caught.value.filename == "/dev/full"
