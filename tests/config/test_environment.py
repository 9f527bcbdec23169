# SPDX-License-Identifier: Apache-2.0
"""What a valid config does not fit on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from replicator.base.errors import UsageError
from replicator.config import load_agent, load_receiver
from replicator.config.environment import (
    MOUNT_TABLE,
    agent_warnings,
    filesystem_type,
    receiver_warnings,
    require_credentials,
    spool_warnings,
)

DISK_FOLDER = "/var"
MEMORY_FOLDER = "/dev/shm"


def agent_file(folder: Path, **splitter: str) -> Path:
    """Credentials of `folder`, one group, and the given keys of [splitter]."""
    keys = "\n".join(f"{key} = {value}" for key, value in splitter.items())
    file = folder / "agent.toml"
    file.write_text(
        f'[splitter]\n{keys}\n[receiver]\naddress = "dr"\nca = "ca.crt"\ncertificate = "a.crt"\n'
        'key = "a.key"\n[[group]]\nname = "g"\n[[group.disk]]\ndomain = "d"\ntarget = "vda"\n'
    )
    return file


def credentials(folder: Path) -> None:
    for name in ("ca.crt", "a.crt", "a.key"):
        (folder / name).write_text("x")
        (folder / name).chmod(0o600)


def here(path: str) -> str | None:
    return filesystem_type(Path(path), MOUNT_TABLE.read_text())


def test_a_fitting_machine_gets_no_warning(tmp_path: Path) -> None:
    assert here(MEMORY_FOLDER) == "tmpfs", "these tests need /dev/shm on tmpfs"
    assert here(DISK_FOLDER) != "tmpfs", "and /var on a disk"
    credentials(tmp_path)
    file = agent_file(
        tmp_path,
        spool_memory_dir=f'"{MEMORY_FOLDER}/replicator/none/yet"',
        spool_memory='"1MiB"',
        spool_disk_dir=f'"{DISK_FOLDER}/none/yet"',
    )
    assert agent_warnings(load_agent(file)) == []


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        (
            {"spool_memory_dir": f'"{DISK_FOLDER}/x"'},
            (
                f"splitter.spool_memory_dir: {DISK_FOLDER}/x is not on tmpfs, so guest writes will "
                "wait for a disk"
            ),
        ),
        (
            {"spool_disk_dir": f'"{MEMORY_FOLDER}/x"'},
            f"splitter.spool_disk_dir: {MEMORY_FOLDER}/x is on tmpfs, so a power cut empties it",
        ),
        (
            {"socket_mode": '"0666"'},
            "splitter.socket_mode: 0666 lets every user of this machine write to the disks' logs",
        ),
        (
            {"socket_group": '"no-such-group"'},
            "splitter.socket_group: there is no group 'no-such-group' here",
        ),
    ],
)
def test_what_does_not_fit_is_said_once(tmp_path: Path, keys: dict[str, str], warning: str) -> None:
    fitting = {
        "spool_memory_dir": f'"{MEMORY_FOLDER}"',
        "spool_memory": '"1MiB"',
        "spool_disk_dir": f'"{DISK_FOLDER}"',
    }
    config = load_agent(agent_file(tmp_path, **fitting | keys))
    assert spool_warnings(config.splitter) == [warning]


def test_a_spool_that_the_splitter_cannot_write_is_said(tmp_path: Path) -> None:
    """Nobody, root neither, may make files in /proc/sys."""
    file = agent_file(
        tmp_path,
        spool_memory_dir=f'"{MEMORY_FOLDER}"',
        spool_memory='"1MiB"',
        spool_disk_dir='"/proc/sys/spool"',
    )
    sentence = "splitter.spool_disk_dir: /proc/sys/spool cannot be written by the splitter's user"
    assert sentence in spool_warnings(load_agent(file).splitter)


def test_a_tmpfs_smaller_than_the_spool_is_said(tmp_path: Path) -> None:
    file = agent_file(tmp_path, spool_memory_dir=f'"{MEMORY_FOLDER}"', spool_memory='"4PiB"')
    (warning,) = spool_warnings(load_agent(file).splitter)
    assert warning.startswith("splitter.spool_memory: 4 PiB, but /dev/shm holds ")


def test_missing_credentials_warn_in_a_check_and_stop_who_needs_them(tmp_path: Path) -> None:
    credentials(tmp_path)
    (tmp_path / "a.crt").unlink()
    config = load_agent(agent_file(tmp_path))
    sentence = f"receiver.certificate: {tmp_path}/a.crt: No such file or directory"
    assert sentence in agent_warnings(config)
    with pytest.raises(UsageError) as caught:
        require_credentials(config.receiver)
    assert caught.value.message == sentence
    assert "pki issue" in caught.value.hint


def test_credentials_that_may_not_be_read_need_no_new_ones(tmp_path: Path) -> None:
    credentials(tmp_path)
    (tmp_path / "a.key").unlink()
    (tmp_path / "a.key").mkdir()
    with pytest.raises(UsageError, match=r"receiver\.key: ") as caught:
        require_credentials(load_agent(agent_file(tmp_path)).receiver)
    assert "pki" not in caught.value.hint


def test_an_open_key_is_a_warning_and_no_more(tmp_path: Path) -> None:
    credentials(tmp_path)
    (tmp_path / "a.key").chmod(0o644)
    config = load_agent(agent_file(tmp_path))
    warnings = agent_warnings(config)
    assert f"receiver.key: {tmp_path}/a.key is open to every user of this machine" in warnings
    require_credentials(config.receiver)


def test_a_receiver_without_groups_serves_nobody(tmp_path: Path) -> None:
    credentials(tmp_path)
    file = tmp_path / "receiver.toml"
    file.write_text(
        f'[receiver]\ndata_dir = "{MEMORY_FOLDER}/x"\nca = "ca.crt"\ncertificate = "a.crt"\n'
        'key = "a.key"\n'
    )
    assert receiver_warnings(load_receiver(file)) == [
        f"receiver.data_dir: {MEMORY_FOLDER}/x is on tmpfs, so a power cut empties it",
        "group: there is none, so no agent may connect",
    ]


def test_the_filesystem_is_found_by_device(tmp_path: Path) -> None:
    """So a symbolic link, a bind mount or a mount on top of another does not deceive."""
    (tmp_path / "link").symlink_to(MEMORY_FOLDER)
    assert here(str(tmp_path / "link/below")) == "tmpfs"
    number = os.stat(tmp_path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    table = (
        "21 1 0:99 / / rw - ext4 /dev/root rw\n"
        f"22 21 {device} / /a\\040b rw,noatime shared:1 master:2 - xfs /dev/x rw\n"
        "garbage\n"
    )
    assert filesystem_type(tmp_path, table) == "xfs"
    assert filesystem_type(tmp_path, "21 1 0:99 / / rw - ext4 /dev/root rw\n") is None


def test_a_group_of_several_domains_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    disks = "".join(
        f'[[group.disk]]\ndomain = "{domain}"\ntarget = "vda"\n' for domain in ("web", "db")
    )
    file.write_text(f'[receiver]\naddress = "dr"\n[[group]]\nname = "shop"\n{disks}')
    (warning,) = (each for each in agent_warnings(load_agent(file)) if "shop" in each)
    assert "holds disks of 2 domains (web, db)" in warning
    assert "none of the others is protected" in warning
