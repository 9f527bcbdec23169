# SPDX-License-Identifier: Apache-2.0
"""docs/cli.md names every command with its options, every exit code, every field and endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from replicator.base.errors import ReplicatorError
from replicator.cli.main import replicator
from replicator.control.openapi import document
from replicator.control.orders import ORDERS, Order

DOCUMENT = (Path(__file__).parents[2] / "docs/cli.md").read_text()
TYPES = document()["components"]["schemas"]


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def table_rows(title: str) -> list[list[str]]:
    """Cells of the tables that follow the heading `title`."""
    (chapter,) = re.findall(rf"^#+ {title}$(.*?)(?=^#+ |\Z)", DOCUMENT, re.M | re.S)
    rows = [line.strip("|").split("|") for line in chapter.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_command_is_documented_with_its_options() -> None:
    synopses = {row[0].strip("`") for row in table_rows("The command")[1:]}
    found = {}
    for path, command in commands(replicator):
        (synopsis,) = [text for text in synopses if re.match(rf"{path}( |$)", text)]
        found[synopsis] = command
        options = {
            parameter.opts[0]
            for parameter in command.params
            if isinstance(parameter, click.Option) and parameter.opts[0] != "--json"
        }
        assert set(re.findall(r"--\w[\w-]*", synopsis)) == options, path
    assert set(found) == synopses


def test_every_exit_code_is_documented() -> None:
    kinds: list[type[ReplicatorError]] = [ReplicatorError, *ReplicatorError.__subclasses__()]
    own = {kind for kind in kinds if kind.__module__ == "replicator.base.errors"}
    documented = {(int(row[0]), row[1].strip("`")) for row in table_rows("Exit codes")[1:]}
    assert documented == {(kind.exit_code, kind.name) for kind in own} | {(0, ""), (130, "")}


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_field_is_documented(kind: str) -> None:
    for field in TYPES[kind].get("properties", {}):
        assert re.search(rf'[`"]{field}[`"]', DOCUMENT), field


@pytest.mark.parametrize("order", ORDERS, ids=[order.name for order in ORDERS])
def test_what_an_order_is_asked_stands_in_its_row(order: Order[Any, Any]) -> None:
    route = f"{order.method} {order.path}".format(group="GROUP", view="ID")
    rows = [
        row for row in table_rows("The control API") if row[0].strip("`").split("?")[0] == route
    ]
    (row,) = rows
    for field in order.request.__struct_fields__:
        assert re.search(rf"\b{field}\b", " ".join(row)), field


def test_every_endpoint_is_documented() -> None:
    documented = {row[0].strip("`") for row in table_rows("The control API")[1:]}
    known = set()
    for order in ORDERS:
        known.add(f"{order.method} {order.path}".format(group="GROUP", view="ID"))
    assert {text.partition("?")[0] for text in documented} == known
