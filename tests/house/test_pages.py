# SPDX-License-Identifier: Apache-2.0
"""Pages read well in an editor, and a diff of one shows what was said."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import ROOT

COLUMNS_MAX = 100
_CODE_OR_LINK = re.compile(r"`[^`]*`|\]\([^)]*\)")


def pages() -> Iterator[Path]:
    for pattern in ("*.md", "docs/**/*.md", "tests/*.md"):
        yield from ROOT.glob(pattern)


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines that can be broken: no tables, headings or code."""
    in_code = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.lstrip().startswith(("|", "#")) and line[:4].strip():
            yield number, line


def test_markdown_is_wrapped() -> None:
    """What cannot be broken (a link, code) may reach beyond."""
    long = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in pages()
        for number, line in prose(page)
        if len(line) > COLUMNS_MAX and not _CODE_OR_LINK.search(line)
    ]
    assert long == []
    assert sum(1 for page in pages() for _ in prose(page)) > 1000, "they are looked at"
