# SPDX-License-Identifier: Apache-2.0
"""`status --check`: what monitoring reads, and within which time."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

import msgspec
import pytest

from replicator.base.unixsocket import listen_unix
from replicator.cli import status
from replicator.cli.main import run
from replicator.control.requests import NoRequest
from replicator.control.service import Call
from replicator.control.types import GroupStatus, Status
from tests.control.canned import GROUP
from tests.control.services import Audited, CannedAgent, CannedReceiver, served_in_thread


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this machine's daemons have their sockets."""
    for module in (status, sys.modules["replicator.cli.invocation"]):
        monkeypatch.setattr(module, "default_socket", lambda role: tmp_path / f"{role}.sock")
    return tmp_path


def receiver_of(*groups: GroupStatus) -> type[CannedReceiver]:
    class Told(CannedReceiver):
        async def status(self, call: Call[NoRequest]) -> Status:
            return Status(role="receiver", name="dr1", groups=list(groups))

    return Told


def like(
    name: str, state: str, rpo: float | None, reason: str = "", remedy: str = ""
) -> GroupStatus:
    return msgspec.structs.replace(
        GROUP, name=name, state=state, rpo_seconds=rpo, reason=reason, remedy=remedy
    )


def test_good_is_0(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    with (
        served_in_thread(here / "agent.sock", CannedAgent, Audited()),
        served_in_thread(here / "receiver.sock", CannedReceiver, Audited()),
    ):
        assert run(["status", "--check"]) == 0
        out = capsys.readouterr().out.splitlines()
        assert out[-1] == "receiver dr1: web: protected, 750 ms old"
        assert len(out) == 2
        assert run(["status", "--check", "--rpo", "500ms"]) == 2


def test_the_worst_comes_first_with_what_to_do(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    groups = (
        like("a", "protected", 1.0),
        like("b", "behind", 2.0, "slow", "wait"),
        like("c", "lost", 3.0, "gone", "replicator resync c"),
    )
    with served_in_thread(here / "receiver.sock", receiver_of(*groups), Audited()):
        assert run(["status", "--check"]) == 2
        assert capsys.readouterr().out.splitlines() == [
            "receiver dr1: c: lost, 3.0 s old: gone [replicator resync c]",
            "receiver dr1: b: behind, 2.0 s old: slow [wait]",
            "receiver dr1: a: protected, 1.0 s old",
        ]
    with served_in_thread(here / "receiver.sock", receiver_of(*groups[:2]), Audited()):
        assert run(["status", "--check"]) == 1
        assert run(["status", "--check", "--json"]) == 1
        (one,) = json.loads(capsys.readouterr().out.partition("[\n")[2].join(("[\n", "")))
        assert one["groups"][1]["remedy"] == "wait"


def test_a_group_without_a_point_is_said_to_have_none(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    never = like("n", "disconnected", None, "no agent has come")
    with served_in_thread(here / "receiver.sock", receiver_of(never), Audited()):
        assert run(["status", "--check"]) == 2
    assert "n: disconnected, no point: no agent has come" in capsys.readouterr().out


def test_nobody_here_is_2(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    began = time.monotonic()
    assert run(["status", "--check"]) == 2
    assert time.monotonic() - began < 2.5
    assert "no daemon answers" in capsys.readouterr().err


def test_a_daemon_that_was_killed_is_2_beside_one_that_is_well(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    listen_unix(here / "agent.sock", mode=0o600).close()
    with served_in_thread(here / "receiver.sock", CannedReceiver, Audited()):
        assert run(["status", "--check"]) == 2
    told = capsys.readouterr()
    assert "agent.sock" in told.err
    assert "dr1: web: protected" in told.out


def test_a_daemon_that_hangs_is_2_within_2_seconds(here: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(here / "agent.sock"))
        listening.listen()
        began = time.monotonic()
        assert run(["status", "--check"]) == 2
        assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("words", [["--rpo", "5s"], ["--check", "--rpo", "soon"]])
def test_what_is_no_order_is_refused(words: list[str], here: Path) -> None:
    assert run(["status", *words]) == 2


def test_points_that_are_not_verified_and_for_how_long(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    group = msgspec.structs.replace(
        like("web", "disconnected", 9.0),
        unverified_disks=["vda", "vdb"],
        unverified_points=12,
        scrub_progress=0.413,
        scrub_rest_seconds=5400.0,
    )
    with served_in_thread(here / "receiver.sock", receiver_of(group), Audited()):
        assert run(["status"]) == 0
        said = capsys.readouterr().out
        assert "12 points are UNVERIFIED until the replica of vda, vdb is read: 41% is done" in said
        assert "replicator scrub web --rate 1GiB" in said
