# SPDX-License-Identifier: Apache-2.0
"""docs/formats.md is enough: a reader made from it alone finds every point, byte for byte."""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from receiver.audit.chain import Fact
from receiver.audit.log import open_audit
from replicator.base.storage import SystemStorage
from tests.offline import by_hand
from tests.offline.copies import LONG, SEEDS, BareHistory

OURS = {"replicator", "receiver", "journal", "agent", "tests"}
FORMATS = (Path(__file__).parents[2] / "docs/formats.md").read_text()


def test_the_reader_knows_nothing_of_this_project() -> None:
    tree = ast.parse(Path(by_hand.__file__).read_text())
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported & OURS == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_point_comes_out_as_it_was(tmp_path: Path, seed: int) -> None:
    bare = BareHistory(tmp_path, seed)
    for point in bare.world.group.points.all:
        out = tmp_path / f"out{point.sequence}"
        out.mkdir()
        by_hand.main(bare.group_dir, point.sequence, out)
        found = {path.stem: path.read_bytes() for path in out.iterdir()}
        expected = bare.world.expected[point.sequence]
        assert found == {name: bytes(content) for name, content in expected.items()}


def test_it_runs_where_nothing_of_this_project_is_installed(tmp_path: Path) -> None:
    bare = BareHistory(tmp_path, SEEDS[0])
    newest = bare.world.group.points.all[-1].sequence
    (tmp_path / "out").mkdir()
    script = tmp_path / "by_hand.py"
    script.write_text(Path(by_hand.__file__).read_text())
    arguments = [str(script), str(bare.group_dir), str(newest), str(tmp_path / "out")]
    subprocess.run([sys.executable, *arguments], check=True, env={}, cwd=tmp_path)
    expected = bare.world.expected[newest]
    for name, content in expected.items():
        assert (tmp_path / "out" / f"{name}.raw").read_bytes() == bytes(content)


@pytest.mark.skipif(shutil.which("xxd") is None, reason="needs xxd")
def test_the_shell_lines_of_the_page_print_the_digests(tmp_path: Path) -> None:
    bare = BareHistory(tmp_path, LONG)
    sealed = bare.segments[0]
    log = open_audit(SystemStorage(), tmp_path / "audit", lambda: 1)
    log.append(Fact("rollback", "g", '{"to": "a\\u0000"}'))
    log.append(Fact("rollback", "g"))
    log.close()
    (audit,) = (tmp_path / "audit").iterdir()
    lines = re.findall(r"^((?:head|tail) .*?)(?: +#.*)?$", FORMATS, re.M)
    told = {line: shell(line.replace("FILE", str(sealed))) for line in lines if "bytes" not in line}
    of_segment = [text for line, text in told.items() if "stat -c" in line or "xxd" in line]
    digest = hashlib.blake2b(sealed.read_bytes()[:-56], digest_size=32).hexdigest()
    assert of_segment == [digest, digest]
    (of_audit,) = [
        shell(line.replace("FILE", str(audit))) for line in lines if line.startswith("tail -n 1")
    ]
    assert of_audit == log.link.digest


def shell(line: str) -> str:
    return subprocess.run(
        ["sh", "-c", line], check=True, capture_output=True, text=True
    ).stdout.split()[0]
