# SPDX-License-Identifier: Apache-2.0
"""docs/openapi.json is what is declared, and hangs together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from replicator.control.openapi import document, text
from replicator.control.orders import ORDERS

FILE = Path(__file__).parents[2] / "docs/openapi.json"


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_the_file_is_what_is_declared() -> None:
    assert FILE.read_text() == text(), "make openapi writes it"


def test_every_order_is_in_it_once() -> None:
    found = [operation["operationId"] for _, _, operation in operations()]
    assert sorted(found) == sorted(order.name for order in ORDERS if not order.is_plan)


def test_what_it_refers_to_is_there_and_nothing_else_is() -> None:
    written = json.dumps(document())
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', written))
    assert used == set(document()["components"]["schemas"])


def test_the_names_in_a_path_are_its_parameters() -> None:
    for path, _, operation in operations():
        named = [each for each in operation["parameters"] if each["in"] == "path"]
        assert [each["name"] for each in named] == re.findall(r"{(\w+)}", path)


def test_a_query_says_what_it_takes_and_what_it_must_have() -> None:
    (writes,) = (each for _, _, each in operations() if each["operationId"] == "writes")
    query = {each["name"]: each for each in writes["parameters"] if each["in"] == "query"}
    assert {name for name, each in query.items() if each["required"]} == {"around"}
    assert query["zone"]["schema"] == {"type": "string"}
    assert query["limit"]["schema"]["maximum"] == 10_000


def test_a_long_order_answers_with_lines_and_a_plan_is_one_of_its_results() -> None:
    (rollback,) = (each for _, _, each in operations() if each["operationId"] == "rollback")
    (line,) = rollback["responses"]["200"]["content"].values()
    results = line["schema"]["properties"]["result"]["anyOf"]
    assert [each["$ref"].rpartition("/")[2] for each in results] == [
        "Chosen_RollbackResult_",
        "Chosen_RollbackPlan_",
    ]
