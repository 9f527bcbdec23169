# SPDX-License-Identifier: Apache-2.0
"""Which definitions of the wheel its own programs may come to, by name. No I/O.

A definition (a constant, function or class at the top of a file; a method) is reached if its name
stands in another that is reached, or in what runs on import: as a name, an attribute, a keyword, a
text. A function under a decorator of somebody else's (click's) is reached by itself, a special
method with its class. So what is named alike counts for each other, and too much is reached rather
than too little.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tests.house.tree import FUNCTION, Module

OURS = frozenset({
    "asynccontextmanager", "cache", "cached_property", "classmethod", "contextmanager",
    "dataclass", "override", "property", "runtime_checkable", "setter", "staticmethod", "unique",
})  # fmt: skip
"""Decorators that call nothing."""


@dataclass(frozen=True, eq=False)
class Definition:
    place: str
    """`journal/record.py:Record.parse`"""
    name: str
    names: frozenset[str]
    """What stands in it; of a class, outside of its methods."""
    owner: Definition | None = None
    is_entry: bool = False


def unreached(modules: Iterable[Module], called: Iterable[str]) -> list[str]:
    """Places of what nothing comes to from what is `called`. Of a class that is not reached, its
    methods go unsaid."""
    definitions = [each for module in modules for each in _definitions(module)]
    names = set(called)
    reached: set[Definition] = set()
    while True:
        more = [
            each
            for each in definitions
            if each not in reached
            and (each.owner is None or each.owner in reached)
            and (each.is_entry or each.name in names)
        ]
        if not more:
            break
        reached.update(more)
        names.update(*(each.names for each in more))
    return sorted(
        each.place
        for each in definitions
        if each not in reached and (each.owner is None or each.owner in reached)
    )


def _definitions(module: Module) -> Iterator[Definition]:
    for node in module.tree.body:
        match node:
            case ast.Import() | ast.ImportFrom():
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield _function(module, node, f"{module.file}:")
            case ast.ClassDef():
                yield from _class(module, node)
            case ast.Assign() | ast.AnnAssign():
                yield from _constants(module, node)
            case _:
                yield Definition(f"{module.file}:", "", _names([node]), is_entry=True)


def _function(
    module: Module,
    node: ast.FunctionDef | ast.AsyncFunctionDef,
    before: str,
    owner: Definition | None = None,
) -> Definition:
    called = (each.func if isinstance(each, ast.Call) else each for each in node.decorator_list)
    foreign = any(ast.unparse(each).rpartition(".")[2] not in OURS for each in called)
    special = node.name.startswith("__")
    return Definition(before + node.name, node.name, _names([node]), owner, foreign or special)


def _class(module: Module, node: ast.ClassDef) -> Iterator[Definition]:
    own = [each for each in node.body if not isinstance(each, FUNCTION)]
    around = [*own, *node.bases, *node.keywords, *node.decorator_list]
    owner = Definition(f"{module.file}:{node.name}", node.name, _names(around))
    yield owner
    for each in node.body:
        if isinstance(each, FUNCTION):
            yield _function(module, each, f"{module.file}:{node.name}.", owner)


def _constants(module: Module, node: ast.Assign | ast.AnnAssign) -> Iterator[Definition]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    value = _names([each for each in (node.value, getattr(node, "annotation", None)) if each])
    for target in targets:
        for name in ast.walk(target):
            if isinstance(name, ast.Name):
                yield Definition(f"{module.file}:{name.id}", name.id, value)


def _names(nodes: Iterable[ast.AST]) -> frozenset[str]:
    found: set[str] = set()
    for node in (each for top in nodes for each in ast.walk(top)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.Constant(value=str(text)) if text.isidentifier():
                found.add(text)
    return frozenset(found)
