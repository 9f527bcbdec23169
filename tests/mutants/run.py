# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.mutants.run [WORD ...]`: all mutants, or those whose rule has one of the words.

The tests named must pass on the tree as it is; that is seen first, so that a test that is broken
anyway does not count as a kill. Then each mutant is put into a copy of the tree by itself, and its
tests must fail: by an assertion, an error, or by never ending. A copy has no bytecode: two
mutations of one file within a second would be taken for each other.

Exit code 0: all were killed. 1: some live, or the tables are stale.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutants import tables
from tests.mutants.mutant import Mutant, StaleError

ROOT = Path(__file__).parents[2]
JOBS = 2
LIMIT_SECONDS = 300.0
"""The tests of a mutant take well under a minute; a machine with other work may need some."""
SPREAD = ("-n", str(JOBS), "--dist", "loadscope")
PASSED, FAILED = 0, 1  # pytest's exit codes


@dataclass(frozen=True, slots=True)
class Verdict:
    mutant: Mutant
    killed: bool
    how: str
    seconds: float


def main(words: Sequence[str]) -> int:
    chosen = [
        mutant
        for mutant in tables.ALL
        if not words or any(word in mutant.rule or word in mutant.file for word in words)
    ]
    if not chosen:
        print(f"no mutant has one of these words: {' '.join(words)}", file=sys.stderr)
        return 1
    try:
        for mutant in chosen:
            mutant.text(ROOT)
    except StaleError as error:
        print(error, file=sys.stderr)
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(JOBS):
            copies.put(_copy(Path(folder) / str(number)))
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        code, said = _pytest(ROOT, [*SPREAD, *tests], limit_seconds=None)
        if code != PASSED:
            print(f"the tests do not pass as they are:\n{said}", file=sys.stderr)
            return 1
        with ThreadPoolExecutor(JOBS) as pool:
            living = 0
            for verdict in pool.map(lambda mutant: _try(mutant, copies), chosen):
                living += not verdict.killed
                word = "killed" if verdict.killed else "LIVES"
                print(
                    f"{word:7} {verdict.seconds:5.1f} s  {verdict.mutant.file}: "
                    f"{verdict.mutant.rule} ({verdict.how})",
                    flush=True,
                )
    seconds = time.monotonic() - began
    print(f"{len(chosen)} mutants, {living} living, {seconds:.0f} s")
    return 1 if living else 0


def _try(mutant: Mutant, copies: SimpleQueue[Path]) -> Verdict:
    copy = copies.get()
    path = copy / mutant.file
    before = path.read_text()
    began = time.monotonic()
    try:
        path.write_text(mutant.text(copy))
        code, said = _pytest(copy, mutant.tests, limit_seconds=LIMIT_SECONDS)
    finally:
        path.write_text(before)
        copies.put(copy)
    seconds = time.monotonic() - began
    if code is None:
        return Verdict(mutant, True, "did not end", seconds)
    last = said.strip().splitlines()[-1] if said.strip() else ""
    return Verdict(mutant, code == FAILED, last, seconds)


def _pytest(
    root: Path, tests: Sequence[str], *, limit_seconds: float | None
) -> tuple[int | None, str]:
    """(exit code, or None if it did not end in time; what was said)."""
    command = [
        *(sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"),
        *("--hypothesis-seed=0", "--no-header", *tests),
    ]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said, _ = child.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return None, ""
    return child.returncode, said


def _copy(there: Path) -> Path:
    """The tree as git knows it, and what is new in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, there / name)
    return there


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
