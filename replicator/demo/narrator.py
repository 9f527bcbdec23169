# SPDX-License-Identifier: Apache-2.0
"""How the story is told: numbered steps, commands as they would be typed, live lines.

On a terminal the live line is redrawn in place; elsewhere (a log, CI) each step is a plain line.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


class Narrator:
    """Writes to a rich console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step = 0
        self._began = time.monotonic()

    def step(self, title: str) -> None:
        self._step += 1
        seconds = time.monotonic() - self._began
        self._console.print(
            f"\n[bold cyan]{self._step}[/]  [bold]{title}[/]  [dim]{seconds:.0f} s[/]"
        )

    def say(self, text: str) -> None:
        self._console.print(f"   {text}", highlight=False)

    def command(self, text: str) -> None:
        """The command line that does what follows."""
        self._console.print(f"   [green]$ {text}[/]", highlight=False)

    def table(self, table: Table) -> None:
        self._console.print(table)

    @contextmanager
    def live(self) -> Iterator[LiveLine]:
        """A line that changes while something goes on; the last text stays."""
        line = LiveLine()
        if not self._console.is_terminal:
            yield line
            self.say(line.text)
            return
        with Live(console=self._console, refresh_per_second=10, transient=False) as live:
            line.attach(live)
            yield line


class LiveLine:
    """One line of text that is replaced."""

    def __init__(self) -> None:
        self.text = ""
        self._live: Live | None = None

    def attach(self, live: Live) -> None:
        self._live = live

    def show(self, text: str) -> None:
        self.text = text
        if self._live is not None:
            self._live.update(Text.from_markup(f"   {text}"))


def bar(share: float, width: int = 28) -> str:
    """A bar of `share`, 0 to 1."""
    full = round(max(0.0, min(1.0, share)) * width)
    return f"[cyan]{'━' * full}[/][dim]{'━' * (width - full)}[/]"
