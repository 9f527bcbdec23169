# SPDX-License-Identifier: Apache-2.0
"""A program that is started without a stream of its own never takes a file for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import os, sys
from replicator.base.standard import occupy_standard_streams
closed = occupy_standard_streams()
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
sys.stdout.write("what is printed"); sys.stdout.flush()
sys.stderr.write("what is said"); sys.stderr.flush()
assert not sys.stdin.isatty()
subprocess = __import__("subprocess")
subprocess.run(["sh", "-c", "echo of a child; echo of a child >&2"], check=True)
os.write(opened, b"%d %d" % (opened > 2, len(closed)))
"""


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_what_is_printed_goes_nowhere_else(tmp_path: str, closed: str) -> None:
    path = f"{tmp_path}/file"
    script = f'exec "$0" -c "$1" "$2" {closed}'
    subprocess.run(["sh", "-c", script, sys.executable, CODE, path], check=True, timeout=60)
    with open(path) as file:
        assert file.read() == f"1 {closed.count('-')}"
