# SPDX-License-Identifier: Apache-2.0
"""What is installed is used by what is installed, and not by the tests alone."""

from __future__ import annotations

from tests.house.exceptions import UNREACHED
from tests.house.reach import unreached
from tests.house.tree import Module, wheel

CALLED = frozenset({
    "main",
    "connection_made", "eof_received", "pause_writing", "resume_writing",  # asyncio's protocols
    "emit",  # logging's handlers
    "__all__",
})  # fmt: skip
"""What other people's code begins with."""


def test_nothing_in_the_wheel_is_for_the_tests_alone() -> None:
    assert set(unreached(wheel(), CALLED)) == UNREACHED.keys()


def test_what_nothing_comes_to_is_found() -> None:
    text = """
LIMIT = 1
SPARE = 2

class Used:
    def called(self): return LIMIT
    def lone(self): return SPARE

class Lone:
    def called(self): ...

def main(): Used().called()
"""
    assert unreached([Module("a.py", text)], ["main"]) == [
        "a.py:Lone",
        "a.py:SPARE",
        "a.py:Used.lone",
    ]
