# SPDX-License-Identifier: Apache-2.0
"""What comes with the programs, from a checkout and from the wheel."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from replicator import __version__
from replicator.cli.main import run
from replicator.cli.setup import shipped

ROOT = Path(__file__).parents[2]


def test_each_file_is_named_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["setup", "--print-units", "--json"]) == 0
    named = {each["place"]: Path(each["file"]) for each in json.loads(capsys.readouterr().out)}
    assert named["/etc/systemd/system/replicator-splitter.service"].read_text().startswith("[Unit]")
    units = {path.name for path in (ROOT / "deploy/systemd").iterdir()}
    assert units <= {file.name for file in named.values()}, "none is left out"


def test_it_copies_nothing_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["setup"]) == 2
    assert "--print-units" in capsys.readouterr().err


def test_the_wheel_brings_programs_and_files(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.startswith(f"replicator-{__version__}-")
    names = set(zipfile.ZipFile(wheel).namelist())
    for each in shipped():
        assert f"replicator/deploy/{each.file.relative_to(ROOT / 'deploy')}" in names
    for package in ("replicator", "agent", "receiver", "journal"):
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py")}
        assert sources <= names
    assert not any(name.startswith("tests/") for name in names)
