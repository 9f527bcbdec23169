# SPDX-License-Identifier: Apache-2.0
"""The tree as the tests of the house read it: every module of the wheel and of the tests, parsed
once. Reads files, runs nothing of what it reads."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEEL = ("replicator", "agent", "receiver", "journal")
"""The packages that are installed, as pyproject.toml names them."""


@dataclass(frozen=True)
class Module:
    file: str
    """Its path from the root of the tree: `journal/record.py`."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """All of `tree`."""
        return tuple(ast.walk(self.tree))

    @property
    def name(self) -> str:
        """`journal.record`; of an `__init__`, its room's."""
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @cached_property
    def head(self) -> str:
        """The first paragraph of its docstring, on one line."""
        docstring = ast.get_docstring(self.tree) or ""
        return " ".join(docstring.partition("\n\n")[0].split())

    @cached_property
    def imports(self) -> frozenset[str]:
        """Every module that it names in an import, wherever in it: `os`, `replicator.base.units`.
        Of `from A import B` both A and A.B, since B may be a module."""
        return frozenset(_imported(self.nodes))


def _imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def wheel() -> tuple[Module, ...]:
    return _modules(WHEEL)


@cache
def suite() -> tuple[Module, ...]:
    return _modules(("tests",))


def _modules(folders: Iterable[str]) -> tuple[Module, ...]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return tuple(Module(str(path.relative_to(ROOT)), path.read_text()) for path in paths)


FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    place: str
    """`journal/record.py:Record.__str__`"""
    node: ast.FunctionDef | ast.AsyncFunctionDef
    is_method: bool

    @property
    def positional(self) -> int:
        """How many it can be given by position, `self` and `cls` not counted."""
        arguments = self.node.args
        static = any(ast.unparse(each) == "staticmethod" for each in self.node.decorator_list)
        bound = self.is_method and not static
        return len(arguments.posonlyargs) + len(arguments.args) - bound


def functions(module: Module) -> Iterator[Function]:
    """All of them, methods and inner ones too."""
    yield from _functions(module.tree, f"{module.file}:")


def _functions(node: ast.AST, place: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTION):
            yield Function(place + child.name, child, isinstance(node, ast.ClassDef))
        inner = f"{place}{child.name}." if isinstance(child, FUNCTION | ast.ClassDef) else place
        yield from _functions(child, inner)
