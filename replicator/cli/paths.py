# SPDX-License-Identifier: Apache-2.0
"""Paths among the arguments. An empty text is none: it is refused, and not taken for the folder
that the command is run in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class _Named(click.Path):
    """As click.Path, of a text that says something."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("an empty text names no path", param, ctx)
        return super().convert(value, param, ctx)


path_type = _Named(path_type=Path)
folder_type = _Named(file_okay=False, path_type=Path)
