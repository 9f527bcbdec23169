# SPDX-License-Identifier: Apache-2.0
"""The tables of mutants fit the tree. (`make mutants` runs them.)"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants.mutant import Mutant, StaleError
from tests.mutants.tables import ALL

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.rule)
def test_a_mutant_changes_one_place_and_can_be_read(mutant: Mutant) -> None:
    text = mutant.text(ROOT)
    assert text != (ROOT / mutant.file).read_text()
    ast.parse(text)


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.rule)
def test_the_tests_of_a_mutant_exist(mutant: Mutant) -> None:
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), test
        names = {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert not name or name.partition("[")[0] in names, test


def test_no_two_mutants_have_one_name() -> None:
    rules = [mutant.rule for mutant in ALL]
    assert len(set(rules)) == len(rules)


def test_a_text_that_is_gone_or_stands_twice_is_said(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\nb = 1\n")
    for old, count in (("c = 1", 0), ("= 1", 2)):
        with pytest.raises(StaleError, match=f"stands {count} times"):
            Mutant("rule", "code.py", old, "", ()).text(tmp_path)
    with pytest.raises(StaleError, match=r"there is no lost\.py"):
        Mutant("rule", "lost.py", "", "", ()).text(tmp_path)
