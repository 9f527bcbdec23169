# SPDX-License-Identifier: Apache-2.0
"""`replicator audit`, at a daemon and over files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from receiver.audit.chain import Fact, Head, Seen
from receiver.audit.log import AuditLog, open_audit
from replicator.base.storage import SystemStorage
from replicator.cli.main import run
from replicator.cli.zone import local_zone
from replicator.control.types import AuditFault
from tests.control.services import Audited, CannedReceiver, served_in_thread

Captured = pytest.CaptureFixture[str]
NOW_NS = 1_700_000_000_000_000_000


def test_the_daemon_lists_its_orders(tmp_path: Path, capsys: Captured) -> None:
    socket = tmp_path / "s"
    with served_in_thread(socket, CannedReceiver, Audited()) as receiver:
        assert run(["--socket", str(socket), "audit", "list"]) == 0
        out = capsys.readouterr().out
        assert out.splitlines()[0].split() == [
            *("ENTRY", "TIME", "UID", "ORDER", "OBJECT", "OUTCOME", "ARGUMENT")
        ]
        assert out.splitlines()[1].endswith('rollback  web     done     {"to": "good"}')
        more = ["--since", "1h ago", "--limit", "5", "--json"]
        assert run(["--socket", str(socket), "audit", "list", *more]) == 0
        assert json.loads(capsys.readouterr().out)[0]["sequence"] == 7
        assert receiver.orders[-1][:3] == ("audited", "1h ago", "5")
        assert receiver.orders[-1][3] == str(local_zone()), (
            "a local time is meant where it is typed"
        )


def test_the_daemon_verifies_and_faults_end_with_13(tmp_path: Path, capsys: Captured) -> None:
    socket = tmp_path / "s"
    with served_in_thread(socket, CannedReceiver, Audited()) as receiver:
        assert isinstance(receiver, CannedReceiver)
        assert run(["--socket", str(socket), "audit", "verify"]) == 0
        assert capsys.readouterr().out == f"1 entries, head {'ab' * 32}\n"
        receiver.audit_faults = [AuditFault(file="/a/1.jsonl", offset=9, problem="torn \x1b[2J")]
        assert run(["--socket", str(socket), "audit", "verify"]) == 13
        assert "fault: /a/1.jsonl: offset 9: torn \\x1b[2J\n" in capsys.readouterr().err
        receiver.audit_faults = []


def test_one_that_is_gone_begins_anew_for_a_reason(tmp_path: Path, capsys: Captured) -> None:
    socket = tmp_path / "s"
    with served_in_thread(socket, CannedReceiver, Audited()) as receiver:
        accept = ["--socket", str(socket), "audit", "accept"]
        assert run([*accept, "--yes"]) == 2
        assert "needs --reason TEXT" in capsys.readouterr().err
        assert run([*accept, "--reason", "the disk was replaced"]) == 2
        assert "give --yes" in capsys.readouterr().err
        assert receiver.orders == []
        assert run([*accept, "--reason", "the disk was replaced", "--yes"]) == 0
        said = capsys.readouterr().out
        assert said == "the audit begins anew, without 7 entries that it once had\n"
        assert receiver.orders == [("accept audit", "the disk was replaced")]
        assert run([*accept, "--reason", "x", "--yes", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"lost_entries": 7}


def written(data_dir: Path) -> AuditLog:
    log = open_audit(SystemStorage(), data_dir / "audit", lambda: NOW_NS)
    log.append(Fact("rollback", "web", '{"to": "good"}', 0, 7, "started"))
    log.append(Fact("rollback", "web", '{"to": "good"}', 0, 7, "done"))
    log.append(Fact("view open", "", "{}", 1000, 8, "no-point", "no \x1b point"))
    log.close()
    return log


def test_files_are_listed_with_no_daemon(tmp_path: Path, capsys: Captured) -> None:
    written(tmp_path)
    assert run(["audit", "list", "--dir", str(tmp_path)]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]
    assert run(["audit", "list", "--dir", str(tmp_path), "--limit", "1", "--json"]) == 0
    (last,) = json.loads(capsys.readouterr().out)
    assert (last["order"], last["uid"], last["outcome"]) == ("view open", 1000, "no-point")
    late = ["--since", "2023-11-15T00:00:00Z"]
    assert run(["audit", "list", "--dir", str(tmp_path), *late]) == 0
    assert capsys.readouterr().err == "the audit has no such entries\n"
    assert run(["audit", "list", "--dir", str(tmp_path), "--since", "good"]) == 2
    assert run(["audit", "list", "--dir", str(tmp_path / "none")]) == 10


def test_files_are_verified_with_no_daemon(tmp_path: Path, capsys: Captured) -> None:
    log = written(tmp_path)
    assert run(["audit", "verify", str(tmp_path), "--expect-head", log.link.digest]) == 0
    assert capsys.readouterr().out == f"3 entries, head {log.link.digest}\n"
    (file,) = (tmp_path / "audit").iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]))  # as good as any; but not what was seen
    assert run(["audit", "verify", str(tmp_path)]) == 0
    assert run(["audit", "verify", str(tmp_path), "--expect-head", log.link.digest]) == 13
    capsys.readouterr()
    file.write_bytes(lines[0] + lines[2])
    assert run(["audit", "verify", str(tmp_path), "--json"]) == 13
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert fault == {"file": str(file), "offset": len(lines[0]), "problem": "entry 2 is missing"}
    assert run(["audit", "verify", "--expect-head", "ab"]) == 2


def test_a_history_that_lost_its_end_shows_in_the_audit(tmp_path: Path, capsys: Captured) -> None:
    log = open_audit(SystemStorage(), tmp_path / "audit", lambda: NOW_NS)
    log.append(Fact("rollback", "web"), Seen({"web": Head(500, "ab" * 32)}))
    log.close()
    (tmp_path / "groups" / "web" / "history").mkdir(parents=True)
    stream = tmp_path / "groups" / "web" / "history" / f"{1:016x}-{'0' * 32}"
    stream.mkdir()
    assert run(["audit", "verify", str(tmp_path)]) == 13
    assert "the audit saw it sealed up to 500" in capsys.readouterr().err
