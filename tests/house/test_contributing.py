# SPDX-License-Identifier: Apache-2.0
"""docs/contributing.md shows code as it stands in the files that it names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/contributing.md").read_text()
NAMED = [ROOT / name for name in re.findall(r"`([\w/.-]+\.\w+)`", DOCUMENT)]


def test_the_files_that_it_names_are_there() -> None:
    assert [
        path for path in NAMED if "/" in str(path.relative_to(ROOT)) and not path.exists()
    ] == []


def test_each_line_of_its_examples_stands_in_one_of_them() -> None:
    texts = [path.read_text() for path in NAMED if path.exists()]
    standing = {line.strip() for text in texts for line in text.splitlines()}
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
    shown = {line.strip() for example in examples for line in example.splitlines()} - {"", "…"}
    assert examples
    assert shown - standing == set()
