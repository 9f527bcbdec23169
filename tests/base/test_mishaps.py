# SPDX-License-Identifier: Apache-2.0
"""The operating system's refusal becomes words once, and says where."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from replicator.base.errors import NoSpaceError, ReplicatorError
from replicator.base.mishaps import is_full, mishap, placed, reason
from replicator.base.trouble import words_of

EIO = OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_place_is_path_operation_and_offset() -> None:
    error = placed(OSError(errno.EIO, "Input/output error"), "reading", Path("/a"), 8192)
    assert str(mishap(error)) == "/a: reading at offset 8192: Input/output error"
    assert reason(error) == "reading at offset 8192: Input/output error"


def test_what_was_nearest_to_it_counts() -> None:
    error = placed(OSError(errno.EIO, "Input/output error"), "reading", Path("/a"), 8192)
    assert placed(error, "scrubbing", Path("/b")) is error
    assert mishap(error).message == "/a: reading at offset 8192: Input/output error"


def test_without_a_place() -> None:
    assert mishap(EIO).message == "a write failed: Input/output error"
    assert mishap(OSError("odd")).message == "a write failed: odd"
    assert mishap(OSError(errno.EIO, None)).message == "a write failed: Input/output error"
    found = OSError(errno.ENOENT, "No such file or directory", b"/bytes")
    assert mishap(found).message == "/bytes: No such file or directory"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_a_code_of_its_own(code: int) -> None:
    error = placed(OSError(code, os.strerror(code)), "creating", Path("/a"))
    assert is_full(error)
    assert isinstance(mishap(error), NoSpaceError)
    assert words_of(error).exit_code == 15
    assert not is_full(EIO)


def test_words_are_made_once() -> None:
    said = words_of(placed(OSError(errno.EIO, os.strerror(errno.EIO)), "reading", Path("/a"), 0))
    assert words_of(said) is said
    assert isinstance(said, ReplicatorError)
    assert said.hint


def test_nobody_else_makes_words_of_what_the_storage_says() -> None:
    """Where its errors go through there is no other place that does."""
    root = Path(__file__).parents[2]
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for folder in ("receiver", "journal", "agent/splitter", "agent/group", "agent/shipping")
        for path in (root / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if "error.strerror" in line or "error.errno}" in line
    ]
    assert found == []
