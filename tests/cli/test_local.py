# SPDX-License-Identifier: Apache-2.0
"""Commands without a daemon, and default sockets, in this process."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from replicator.cli import main as main_module
from replicator.cli import status
from replicator.cli.main import replicator, run
from replicator.control import client
from replicator.control.requests import NoRequest
from replicator.control.service import Call
from replicator.control.types import Status
from tests.control.services import Audited, CannedAgent, CannedReceiver, served_in_thread
from tests.journal import golden

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPLICATOR_SOCKET", raising=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's default sockets lie in this folder; nobody waits long for them."""
    for module in (status, sys.modules["replicator.cli.invocation"]):
        monkeypatch.setattr(module, "default_socket", lambda role: tmp_path / f"{role}.sock")
    monkeypatch.setattr(client, "WAIT_SECONDS", 0.2)
    return tmp_path


def test_config_check_of_an_agent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[receiver]\naddress = "dr"\n')
    assert run(["config", "check", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{file}: a valid configuration of the agent\n"
    assert "warning: group: there is none, so nothing is protected\n" in err


def test_config_check_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "check", str(ROOT / "deploy/receiver.toml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["role"] == "receiver"
    assert any(warning.startswith("receiver.key: ") for warning in found["warnings"])


def test_config_check_of_a_mistake(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[receiver]\naddress = "dr"\n[agent]\nstat_dir = "/x"\n')
    assert run(["config", "check", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {file}: agent.stat_dir: unknown key\nhint: did you mean 'state_dir'?\n"


def test_pki_makes_a_ca_and_certificates(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pki"
    assert run(["pki", "init", "--dir", str(folder)]) == 0
    assert run(["pki", "issue", "kvm1", "--dir", str(folder), "--san", "127.0.0.1"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [
        f"{folder}/{name}" for name in ("ca.crt", "ca.key", "kvm1.crt", "kvm1.key")
    ]
    assert err == ""
    assert all(Path(path).exists() for path in out.split())


def test_pki_does_not_overwrite(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["pki", "init", "--dir", str(tmp_path)]) == 0
    assert run(["pki", "init", "--dir", str(tmp_path)]) == 2
    assert f"error: {tmp_path}/ca.key exists already\n" in capsys.readouterr().err


def test_pki_where_nothing_may_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["pki", "init", "--dir", str(tmp_path / "file/pki")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/file/pki: Not a directory\n"


def test_journal_inspect_prints_what_the_journal_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "log.seg").write_bytes(golden.read("log-sealed.hex"))
    assert run(["journal", "inspect", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}/log.seg: log of group 'golden'")
    assert "label='before upgrade'" in out


def test_status_shows_whichever_daemon_is_here(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    with served_in_thread(here / "receiver.sock", CannedReceiver, Audited()):
        assert run(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["role"] == "receiver"
        with served_in_thread(here / "agent.sock", CannedAgent, Audited()):
            assert run(["status", "--json"]) == 0
            both = json.loads(capsys.readouterr().out)
            assert [one["role"] for one in both] == ["agent", "receiver"]
            assert run(["status"]) == 0
            headings = {"agent kvm1", "receiver dr1"}
            assert headings <= set(capsys.readouterr().out.splitlines())


class BesideAnOldSplitter(CannedAgent):
    async def status(self, call: Call[NoRequest]) -> Status:
        return msgspec.structs.replace(await super().status(call), missing=["a", "b"])


def test_status_says_what_the_running_splitter_is_too_old_for(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    with served_in_thread(here / "agent.sock", BesideAnOldSplitter, Audited()):
        assert run(["status"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[-2:] == [
            "the running splitter is too old for: a (until it is started anew)",
            "the running splitter is too old for: b (until it is started anew)",
        ]
        assert run(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["missing"] == ["a", "b"]


def test_a_dead_daemons_socket_does_not_hide_the_living_one(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    from replicator.base.unixsocket import listen_unix

    listen_unix(here / "agent.sock", mode=0o600).close()
    with served_in_thread(here / "receiver.sock", CannedReceiver, Audited()):
        assert run(["status", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["role"] == "receiver"


def test_each_order_finds_its_own_daemon(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    with (
        served_in_thread(here / "agent.sock", CannedAgent, Audited()) as agent,
        served_in_thread(here / "receiver.sock", CannedReceiver, Audited()),
    ):
        assert run(["mark", "web", "--label", "x"]) == 0
        assert run(["points", "web", "--json"]) == 0
        assert agent.orders == [("mark", "web", "x", "False")]
    assert "it is a point once the receiver has it" in capsys.readouterr().out


def test_nobody_here_ends_with_75(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    assert run(["status"]) == 75
    assert capsys.readouterr().err.startswith(
        f"error: no daemon answers at {here}/agent.sock or {here}/receiver.sock\n"
    )


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(replicator, "main", interrupt)
    assert run(["status"]) == main_module.INTERRUPTED == 130


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(replicator, "main", fail)
    with pytest.raises(KeyError):
        run(["status"])


def test_the_command_itself_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("replicator, version ")
    assert run([]) == 2
    assert capsys.readouterr().err.startswith("Usage: replicator ")


def test_a_full_disk_under_stdout_is_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        code = run(["config", "check", str(ROOT / "deploy/agent.toml")])
        with suppress(OSError):
            full.close()
    assert code == 15
    assert "error: a write failed: No space left on device\n" in capsys.readouterr().err
