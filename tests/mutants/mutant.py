# SPDX-License-Identifier: Apache-2.0
"""One mutant: a text of one file, what stands there instead, the tests that must notice. Reads
the file it names, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class StaleError(Exception):
    """The table does not fit the tree; says which entry, and what to do."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` stands exactly once in `file`. `tests` are what pytest takes: files, or single tests;
    together they need well under a minute."""

    rule: str
    """What does not hold any more. It is the mutant's name, unique over all tables."""
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def text(self, root: Path) -> str:
        """The file with the mutation in it. Raises StaleError."""
        path = root / self.file
        if not path.is_file():
            raise StaleError(f"{self.rule}: there is no {self.file}; name where the rule is now")
        text = path.read_text()
        if (found := text.count(self.old)) != 1:
            raise StaleError(
                f"{self.rule}: its text stands {found} times in {self.file}; name it anew"
            )
        return text.replace(self.old, self.new)
