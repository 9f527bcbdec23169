# SPDX-License-Identifier: Apache-2.0
"""`config check`: what a start would refuse, found beforehand; what a person had better know."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from replicator.base import pki
from replicator.base.certificates import EXPIRES_SOON, age_warnings, read_certificates
from replicator.cli.main import run
from replicator.control.splitter import SplitterSide, SplitterStatus, Subscribe, encode_status
from tests.receiver_service.dr_site import refused_start

Check = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CA, and credentials of kvm1 and dr."""
    pki.init_ca(tmp_path)
    pki.issue(tmp_path, "kvm1")
    pki.issue(tmp_path, "dr")
    return tmp_path


def agent_file(folder: Path, *, name: str = "kvm1", group: str = "", more: str = "") -> Path:
    group = group or '[[group]]\nname = "g"\ndriver = "external"\n'
    disk = "" if "[[group.disk]]" in group else '[[group.disk]]\nname = "d"\nsize = "1MiB"\n'
    file = folder / "agent.toml"
    file.write_text(
        f'[agent]\nname = "{name}"\nstate_dir = "state"\n'
        f'[splitter]\nspool_memory_dir = "/dev/shm"\nspool_memory = "1MiB"\nspool_disk = "0"\n'
        f'control = "{folder}/splitter.sock"\n'
        f'[receiver]\naddress = "dr"\nca = "ca.crt"\ncertificate = "kvm1.crt"\nkey = "kvm1.key"\n'
        f"{more}{group}{disk}"
    )
    return file


def receiver_file(folder: Path, *, history: str = 'max_bytes = "1MiB"', groups: int = 1) -> Path:
    file = folder / "receiver.toml"
    each = "".join(f'[[group]]\nname = "g{at}"\nagents = ["kvm1"]\n' for at in range(groups))
    file.write_text(
        f'[receiver]\nname = "dr"\ndata_dir = "data"\nlisten = "127.0.0.1:0"\n'
        f'control = "{folder}/receiver.sock"\nca = "ca.crt"\ncertificate = "dr.crt"\n'
        f'key = "dr.key"\n[history]\n{history}\n{each}'
    )
    return file


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Exit code, and what was said on either stream."""

    def checked(file: Path, *words: str) -> tuple[int, str]:
        code = run(["config", "check", str(file), *words])
        said = capsys.readouterr()
        return code, said.err + said.out

    return checked


def test_what_fits_is_good_either_way(folder: Path, check: Check) -> None:
    for file, role in ((agent_file(folder), "agent"), (receiver_file(folder), "receiver")):
        for words in ((), ("--start",)):
            assert check(file, *words) == (0, f"{file}: a valid configuration of the {role}\n")
    assert not (folder / "data").exists()
    assert not (folder / "state").exists()


def test_a_certificate_of_another_name_is_what_a_start_refuses(folder: Path, check: Check) -> None:
    file = agent_file(folder, name="kvm2")
    code, said = check(file)
    assert code == 0
    assert "does not name this agent: it names kvm1" in said
    code, said = check(file, "--start")
    assert code == 12
    assert said.startswith(f"error: {folder}/kvm1.crt does not name this agent")


def test_a_key_of_another_certificate_is_what_a_start_refuses(folder: Path, check: Check) -> None:
    shutil.copy(folder / "dr.key", folder / "kvm1.key")
    assert check(agent_file(folder), "--start")[0] == 12
    shutil.copy(folder / "ca.key", folder / "dr.key")
    assert check(receiver_file(folder), "--start")[0] == 12


def test_a_missing_file_is_said_once_and_refused(folder: Path, check: Check) -> None:
    (folder / "kvm1.key").unlink()
    code, said = check(agent_file(folder))
    assert (code, said.count("kvm1.key: No such file or directory")) == (0, 1)
    assert check(agent_file(folder), "--start")[0] == 2


async def test_the_check_of_a_newer_data_dir_is_that_of_the_start(
    folder: Path, check: Check
) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "format").write_text("999\n")
    file = receiver_file(folder)
    code, said = check(file, "--start")

    class Site:
        config_file = file

    refused, words = await refused_start(Site())  # type: ignore[arg-type]
    assert code == refused == 17
    assert said.splitlines()[0] in words


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (timedelta(days=-1), "expired on"),
        (timedelta(days=1, hours=1), "in 1 days"),
        (EXPIRES_SOON + timedelta(days=1), None),
    ],
)
def test_the_age_of_a_certificate(folder: Path, left: timedelta, says: str | None) -> None:
    found = read_certificates(folder / "kvm1.crt")
    told = list(age_warnings("receiver.certificate", found, found.not_after - left))
    assert len(told) == (says is not None)
    assert says is None or says in told[0]
    early = list(age_warnings("receiver.ca", found, found.not_before - timedelta(hours=1)))
    assert "is valid from" in early[0]


def test_a_certificate_that_expires_is_said_and_refuses_no_start(
    folder: Path, check: Check
) -> None:
    for name in ("kvm1.crt", "kvm1.key"):
        (folder / name).unlink()
    pki.issue(folder, "kvm1", days=3)
    code, said = check(agent_file(folder), "--start")
    assert code == 0
    assert "receiver.certificate: " in said
    end = read_certificates(folder / "kvm1.crt").not_after
    assert f"expires on {end:%Y-%m-%d %H:%M} UTC, in " in said
    assert datetime.now(UTC) < end


def test_a_certificate_of_another_authority_is_said(folder: Path, check: Check) -> None:
    (folder / "other").mkdir()
    pki.init_ca(folder / "other")
    shutil.copy(folder / "other" / "ca.crt", folder / "ca.crt")
    for file in (agent_file(folder), receiver_file(folder)):
        assert "was not signed by" in check(file)[1]


def test_scripts_that_cannot_be_run_are_said(folder: Path, check: Check) -> None:
    script = folder / "pre"
    script.write_text("#!/bin/sh\n")
    group = (
        '[[group]]\nname = "g"\ndriver = "external"\n'
        f'quiesce_pre = ["{script}"]\nquiesce_post = ["{folder}/post"]\n'
    )
    said = check(agent_file(folder, group=group))[1]
    assert f"group[0].quiesce_pre: {script} may not be executed" in said
    assert f"group[0].quiesce_post: there is no {folder}/post" in said


def test_a_budget_that_the_disk_cannot_hold_is_said(folder: Path, check: Check) -> None:
    said = check(receiver_file(folder, history='max_bytes = "1PiB"', groups=3))[1]
    assert "history.max_bytes: the histories of 3 groups may take 3 PiB" in said


def test_a_libvirt_that_does_not_answer_is_said(folder: Path, check: Check) -> None:
    group = '[[group]]\nname = "g"\n[[group.disk]]\ndomain = "web"\ntarget = "vda"\n'
    uri = f'[libvirt]\nuri = "qemu+unix:///session?socket={folder}/none.sock"\n'
    code, said = check(agent_file(folder, group=group, more=uri), "--start")
    assert code == 0
    assert "libvirt.uri: " in said
    assert "cannot be asked for the domains" in said


def test_domains_and_targets_are_looked_for(folder: Path, check: Check) -> None:
    """libvirt's own test driver has a domain `test`."""
    group = (
        '[[group]]\nname = "g"\n'
        '[[group.disk]]\ndomain = "test"\ntarget = "vdz"\n'
        '[[group.disk]]\ndomain = "web"\ntarget = "vda"\n'
    )
    uri = '[libvirt]\nuri = "test:///default"\n'
    said = check(agent_file(folder, group=group, more=uri))[1]
    assert "group[0].disk[0]: domain 'test' has no disk with target 'vdz'" in said
    assert "group[0].disk[1]: libvirt knows no domain 'web'" in said


def test_the_groups_of_a_running_splitter_are_compared(folder: Path, check: Check) -> None:
    file = agent_file(folder)
    with splitter_without_groups(folder / "splitter.sock"):
        said = check(file)[1]
    assert "the running splitter does not know group 'g'" in said
    assert "splitter" not in check(file)[1]


@contextmanager
def splitter_without_groups(path: Path) -> Iterator[None]:
    """The control socket of one, for one connection."""
    side = SplitterSide()

    def serve() -> None:
        link, _ = listener.accept()
        with link:
            while data := link.recv(4096):
                for request in side.receive_data(data):
                    assert isinstance(request, Subscribe)
                    link.sendall(encode_status(SplitterStatus(instance="i", groups=[])))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        serving = threading.Thread(target=serve)
        serving.start()
        yield
        serving.join()
    path.unlink()


def test_what_was_found_is_in_the_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "check", str(agent_file(folder, name="kvm2")), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["warnings"]) == 1
    assert "does not name this agent" in found["warnings"][0]
