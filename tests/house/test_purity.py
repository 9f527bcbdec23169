# SPDX-License-Identifier: Apache-2.0
"""What the first lines of files claim of I/O is true.

    "No I/O."         neither reads nor waits: imports none of asyncio, threading, socket,
                      subprocess, os; opens no file, asks no clock
    "…, no I/O."      the same behind a lock, or with something of each thread's own
    "No socket."      waits for other tasks, and for nothing else: asyncio, none of the others

"No I/O but reading images", "No I/O of its own" are held to the first as well: what they read is
handed to them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.house.tree import Module, suite, wheel

OUTSIDE = frozenset({"asyncio", "threading", "socket", "subprocess", "os"})
ALLOWED = {
    r"\bNo I/O\b": frozenset[str](),
    r", no I/O\.": frozenset({"threading"}),
    r"\bNo socket\.": frozenset({"asyncio"}),
}
CALLS = re.compile(r"(open|input|print)|time\.\w+|.+\.(read_|write_)(text|bytes)|.+\.(stat|unlink)")


def allowed(module: Module) -> frozenset[str] | None:
    """Which of OUTSIDE it may import; None if it claims nothing."""
    claims = [names for claim, names in ALLOWED.items() if re.search(claim, module.head)]
    assert len(claims) < 2, f"{module.file} claims two things"
    return claims[0] if claims else None


def outside(module: Module) -> frozenset[str]:
    return OUTSIDE & {name.partition(".")[0] for name in module.imports}


def lies(module: Module) -> Iterator[str]:
    may = allowed(module)
    if may is None:
        return
    yield from sorted(outside(module) - may)
    if not may:
        calls = (ast.unparse(n.func) for n in module.nodes if isinstance(n, ast.Call))
        yield from sorted({f"{call}()" for call in calls if CALLS.fullmatch(call)})


def test_what_claims_to_do_no_io_does_none() -> None:
    found = {module.file: each for module in wheel() + suite() if (each := [*lies(module)])}
    assert found == {}


def test_what_waits_says_so_only_where_it_waits() -> None:
    """A file that imports nothing to wait with says "No I/O."."""
    saying_less = [
        module.file
        for module in wheel() + suite()
        if (may := allowed(module)) and not outside(module) & may
    ]
    assert saying_less == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""A. No I/O."""\nimport os', ["os"]),
        ('"""A. No I/O."""\nfrom os.path import join', ["os"]),
        ('"""A. No I/O."""\ndef f():\n    from asyncio import sleep', ["asyncio"]),
        ('"""A. No I/O but\nof its own."""\nimport socket', ["socket"]),
        ('"""A. No I/O."""\nPath("a").read_text()\nopen("b")', ["Path('a').read_text()", "open()"]),
        ('"""A. A lock, no I/O."""\nimport threading, os', ["os"]),
        ('"""A. No socket."""\nimport asyncio, socket', ["socket"]),
        ('"""A."""\nimport os', []),
        ('"""A.\n\nNo I/O."""\nimport os', []),
    ],
)
def test_a_lie_is_found(text: str, found: list[str]) -> None:
    assert [*lies(Module("a.py", text))] == found
