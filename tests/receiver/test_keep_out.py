# SPDX-License-Identifier: Apache-2.0
"""Whatever it is called, nothing is written where replicas and histories are kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from receiver.data_dir import keep_out
from receiver.data_dir.keep_out import refuse_inside
from replicator.base.errors import UsageError


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A data_dir with a group whose disks lie elsewhere."""
    data_dir = tmp_path / "dr" / "data"
    (data_dir / "groups" / "web" / "history").mkdir(parents=True)
    (tmp_path / "large" / "web").mkdir(parents=True)
    (data_dir / "groups" / "moved").symlink_to(tmp_path / "large" / "web")
    return data_dir


def refused(target: Path, kept: Path, own: Path | None = None) -> bool:
    try:
        refuse_inside(target, kept, own)
    except UsageError as error:
        return "where replicas and histories are kept" in error.message and bool(error.hint)
    return False


def test_inside_and_outside(tmp_path: Path, kept: Path) -> None:
    for target in (
        kept,
        kept / "groups/web/history",
        kept / "new/and/newer",
        kept / "groups" / ".",
    ):
        assert refused(target, kept)
    for target in (tmp_path, tmp_path / "dr", tmp_path / "dr/data2", kept / ".." / "beside"):
        assert not refused(target, kept)


def test_by_another_name(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to(kept)
    (tmp_path / "deep").symlink_to("dr/data/groups/web")
    assert refused(tmp_path / "link", kept)
    assert refused(tmp_path / "deep/not/yet", kept)
    assert refused(kept, tmp_path / "link"), "data_dir itself may be named by a link"
    monkeypatch.chdir(kept / "groups")
    for target in (".", "web", "..", "new"):
        assert refused(Path(target), kept)
    assert not refused(Path("../../beside"), kept)


def test_a_group_that_lies_on_another_disk(tmp_path: Path, kept: Path) -> None:
    own = kept / "groups" / "moved"
    assert refused(own / "out", kept, own)
    assert refused(tmp_path / "large/web/out", kept, own)
    assert not refused(tmp_path / "large/out", kept, own)


CODE = """
import sys
from pathlib import Path
from receiver.data_dir.keep_out import refuse_inside
refuse_inside(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("shown", ["", "groups", "groups/web/history"])
def test_a_bind_mount_of_it_or_of_a_folder_in_it(tmp_path: Path, kept: Path, shown: str) -> None:
    """In a mount namespace of its own."""
    place = tmp_path / "a place"
    place.mkdir()
    script = f'mount --bind "$1" "$2" && exec "$3" -c "$4" "$2/$5" "{kept}"'
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(kept / shown), str(place)]
    done = subprocess.run(
        [*command, sys.executable, CODE, "out"], capture_output=True, text=True, check=False
    )
    assert "where replicas and histories are kept" in done.stderr
    beside = ["unshare", "--mount", "sh", "-ec", script, "sh", str(kept.parent), str(place)]
    done = subprocess.run(
        [*beside, sys.executable, CODE, "out"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), "what is above it is not in it"


def test_a_place_with_a_space_in_its_name_is_read_from_the_mounts() -> None:
    assert keep_out._plain(r"/a\040place\134") == "/a place\\"
