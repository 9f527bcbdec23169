# SPDX-License-Identifier: Apache-2.0
"""`replicator journal` over bare histories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from receiver.audit.chain import Fact, Head, Seen
from receiver.audit.log import open_audit
from replicator.base.storage import SystemStorage
from replicator.cli.main import run
from tests.offline.copies import LONG, BareHistory

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def bare(tmp_path: Path) -> BareHistory:
    return BareHistory(tmp_path / "data" / "groups", LONG)


def head_of(bare: BareHistory, capsys: Captured) -> tuple[int, str]:
    assert run(["journal", "head", str(bare.group_dir), "--json"]) == 0
    head = json.loads(capsys.readouterr().out)["g"]
    return head["end"], head["digest"]


def test_a_good_history(bare: BareHistory, capsys: Captured) -> None:
    assert run(["journal", "verify", str(bare.group_dir)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{bare.group_dir}/history: history of group g\n")
    for path in bare.segments:
        assert f"  {path.name}  good  " in out
    assert f"head {head_of(bare, capsys)[1]}" in out


def test_faults_end_with_13_and_name_file_and_offset(bare: BareHistory, capsys: Captured) -> None:
    path = bare.segments[1]
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    assert run(["journal", "verify", str(bare.group_dir)]) == 13
    out, err = capsys.readouterr()
    assert f"fault: {path}: " in err
    assert "(file offset 192)" in err
    assert f"  {path.name}  BAD  sealed" in out
    assert run(["journal", "verify", "--json", str(bare.group_dir)]) == 13
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert (faults[0]["file"], faults[0]["offset"]) == (str(path), 192)


def test_an_expected_head_shows_that_the_end_is_gone(bare: BareHistory, capsys: Captured) -> None:
    _, digest = head_of(bare, capsys)
    assert run(["journal", "verify", str(bare.group_dir), "--expect-head", digest]) == 0
    sealed = [each.path for each in bare.verify()[1] if each.is_sealed]
    for path in bare.segments[bare.segments.index(sealed[-1]) :]:
        path.unlink()
    assert run(["journal", "verify", str(bare.group_dir)]) == 0  # as good as any
    capsys.readouterr()
    assert run(["journal", "verify", str(bare.group_dir), "--expect-head", digest]) == 13
    assert f"no sealed segment has the digest {digest}" in capsys.readouterr().err
    assert run(["journal", "verify", str(bare.group_dir), "--expect-head", "ab"]) == 2


def test_the_audit_shows_that_the_end_is_gone(bare: BareHistory, capsys: Captured) -> None:
    data_dir = bare.group_dir.parents[1]
    end, digest = head_of(bare, capsys)
    log = open_audit(SystemStorage(), data_dir / "audit", lambda: 1)
    log.append(Fact("rollback", "g"), Seen({"g": Head(end, digest)}))
    log.append(Fact("rollback", "g"))
    log.close()
    assert run(["journal", "verify", str(data_dir)]) == 0
    assert "audit, good, 2 entries" in capsys.readouterr().out
    sealed = [each.path for each in bare.verify()[1] if each.is_sealed]
    for path in bare.segments[bare.segments.index(sealed[-1]) :]:
        path.unlink()
    assert run(["journal", "verify", str(data_dir)]) == 13
    assert f"the audit saw it sealed up to {end}" in capsys.readouterr().err


def test_a_broken_audit_is_a_fault_of_its_data_dir(bare: BareHistory, capsys: Captured) -> None:
    data_dir = bare.group_dir.parents[1]
    log = open_audit(SystemStorage(), data_dir / "audit", lambda: 1)
    log.append(Fact("rollback", "g"))
    log.close()
    (file,) = (data_dir / "audit").iterdir()
    file.write_bytes(file.read_bytes().replace(b"rollback", b"rollbakk"))
    assert run(["journal", "verify", "--json", str(data_dir)]) == 13
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert fault == {"file": str(file), "offset": 0, "problem": "entry 1 fails its digest"}


def test_where_there_is_no_history(tmp_path: Path, capsys: Captured) -> None:
    assert run(["journal", "verify", str(tmp_path)]) == 10
    assert "there is no history" in capsys.readouterr().err
