# SPDX-License-Identifier: Apache-2.0
"""Measures of the house. What exceeds them today stands in tests.house.exceptions, with its number.

A measure says where to look, not what is right: a long file may hold one idea. But it cannot become
longer unseen, and what has become better stays so.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile

from tests.house.exceptions import (
    LONGER_FILES,
    MORE_POSITIONAL,
    WIDER_CLASSES,
    WORDS_FOR_SEVERAL,
)
from tests.house.tree import FUNCTION, ROOT, Module, functions, suite, wheel

FILE_LINES_MAX = 400
MEMBERS_MAX = 19
POSITIONAL_MAX = 5
ASSERTIONS_PER_TEST_MIN = 2.5
ASSERTIONS_PER_100_FUNCTIONS_MIN = 5
"""In the wheel, where they are checks of ourselves."""


def exceeding(measured: Mapping[str, int], limit: int, table: Mapping[str, int]) -> dict[str, int]:
    """What is beyond the limit and not in the table with that very number, and what the table has
    too much of: 0 where it is within the limit by now, or gone."""
    beyond = {name: number for name, number in measured.items() if number > limit}
    names = beyond.keys() | table.keys()
    return {n: beyond.get(n, 0) for n in sorted(names) if beyond.get(n, 0) != table.get(n, 0)}


def test_a_file_has_at_most_400_lines() -> None:
    """In steps of 100 beyond that."""
    lines = {each.file: len(each.text.splitlines()) for each in wheel() + suite()}
    steps = {file: number + -number % 100 for file, number in lines.items()}
    assert exceeding(steps, FILE_LINES_MAX, LONGER_FILES) == {}


def test_a_class_has_fewer_than_20_public_members() -> None:
    members = {
        f"{module.file}:{node.name}": len(public_members(node))
        for module in wheel()
        for node in module.nodes
        if isinstance(node, ast.ClassDef)
    }
    assert exceeding(members, MEMBERS_MAX, WIDER_CLASSES) == {}


def test_a_function_takes_at_most_5_arguments_by_position() -> None:
    taken = {each.place: each.positional for m in wheel() + suite() for each in functions(m)}
    assert exceeding(taken, POSITIONAL_MAX, MORE_POSITIONAL) == {}


def test_a_word_names_one_class() -> None:
    """Of the public classes at the top of a file."""
    named = Counter(
        node.name
        for module in wheel()
        for node in module.tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert exceeding(named, 1, WORDS_FOR_SEVERAL) == {}


def test_assertions_do_not_become_fewer() -> None:
    """`pytest.raises` is none of them: it looks at less."""
    tests = [each for m in suite() for each in functions(m) if each.node.name.startswith("test_")]
    asserted = sum(assertions(ast.walk(each.node)) for each in tests)
    assert asserted / len(tests) >= ASSERTIONS_PER_TEST_MIN


def test_the_code_checks_itself_no_less() -> None:
    asserted = sum(assertions(module.nodes) for module in wheel())
    number = sum(1 for module in wheel() for _ in functions(module))
    assert 100 * asserted / number >= ASSERTIONS_PER_100_FUNCTIONS_MIN


def test_a_room_names_each_of_its_files() -> None:
    """In the docstring of its `__init__`, which is its map."""
    missing = {room.file: names for room in wheel() if (names := unnamed(room))}
    assert missing == {}


def unnamed(room: Module) -> set[str]:
    if not room.file.endswith("/__init__.py"):
        return set()
    folder = (ROOT / room.file).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    rooms = {path.parent.name for path in folder.glob("*/__init__.py")}
    cells = re.split(r"\n|\|", ast.get_docstring(room.tree) or "")
    return (files | rooms) - {name for cell in cells for name in leading(cell, files | rooms)}


def leading(cell: str, names: set[str]) -> Iterator[str]:
    """The names at the beginning of a table's cell: `watch, end  how a domain ended`."""
    return takewhile(names.__contains__, re.findall(r"\w+", cell))


def public_members(node: ast.ClassDef) -> set[str]:
    """What it defines itself, and what it sets on `self`."""
    names = {each.name for each in node.body if isinstance(each, FUNCTION)}
    names |= {t.id for each in node.body for t in targets(each) if isinstance(t, ast.Name)}
    names |= {
        target.attr
        for each in ast.walk(node)
        for target in targets(each)
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }
    return {name for name in names if not name.startswith("_")}


def targets(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from target.elts if isinstance(target, ast.Tuple) else (target,)
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        yield node.target


def assertions(nodes: Iterable[ast.AST]) -> int:
    return sum(isinstance(each, ast.Assert) for each in nodes)
