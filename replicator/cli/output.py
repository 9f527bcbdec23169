# SPDX-License-Identifier: Apache-2.0
"""How results look: JSON documents, tables, sentences, progress.

Data goes to stdout, everything else to stderr. With --json stdout holds one document and nothing
else. On a terminal tables have lines and long orders a bar; otherwise columns are plain, so that
awk and diff like them. NO_COLOR is heeded (by rich).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from replicator.base.errors import ReplicatorError, UsageError
from replicator.base.units import format_duration

if TYPE_CHECKING:
    from replicator.control.types import Choice, Point, Progress

NONE = "-"  # a cell with nothing in it
CLOCKS_APART = timedelta(seconds=2)


def print_json(value: object) -> None:
    """One document on stdout."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        _print_rich(headers, rows)
        return
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _print_rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def require_terminal(
    order: str, *, hint: str = "give --yes, or --dry-run to see what it would do"
) -> None:
    """Raises UsageError where nobody can be asked. `order`: `a rollback`."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{order} asks for confirmation, and there is no terminal to ask at",
            hint=hint,
        )


def confirm(question: str) -> None:
    """Raises ReplicatorError for anything but a yes."""
    if not click.confirm(question, err=True):
        raise ReplicatorError("not confirmed; nothing was done")


def note(text: str) -> None:
    """A sentence beside the data."""
    click.echo(text, err=True)


def print_choice(choice: Choice, *, is_json: bool) -> None:
    """Which point a text named, and how far that is from what was asked."""
    local = f" ({choice.local})" if choice.local is not None else ""
    click.echo(f"{choice.asked!r}{local} is {describe_choice(choice)}", err=is_json)
    if choice.notice:
        note(choice.notice)


def describe_choice(choice: Choice) -> str:
    distance = choice.distance_seconds
    if choice.writes:
        after = "" if not distance else f", {format_duration(round(distance * 1e9))} before that"
        behind = f"write {choice.writes} of {choice.write_time} behind "
        return behind + describe_point(choice.point) + after
    if distance is None:
        return describe_point(choice.point)
    if distance == 0:
        return f"{describe_point(choice.point)}, which stands for exactly that time"
    return f"{describe_point(choice.point)}, {format_duration(round(distance * 1e9))} before that"


def describe_point(point: Point) -> str:
    number = NONE if point.sequence is None else f"#{point.sequence}"
    label = f", {point.label!r}" if point.label is not None else ""
    doubt = ", UNVERIFIED" if point.unverified else ""
    text = f"point {number} of {point.time} ({point.kind}{label}{doubt})"
    if point.made is not None and describe_clock(point):
        text += f", made at {point.made} by the receiver's clock"
    return text


def describe_clock(point: Point) -> str:
    """`clock 1 d 0 h ahead`, where its time is not the receiver's; or a step that was seen."""
    if point.made is not None:
        apart = datetime.fromisoformat(point.time) - datetime.fromisoformat(point.made)
        if abs(apart) > CLOCKS_APART:
            length = format_duration(round(abs(apart.total_seconds()) * 1e9))
            return f"clock {length} {'ahead' if apart > timedelta() else 'behind'}"
    if point.clock_step_seconds:
        return f"clock set by {format_duration(round(point.clock_step_seconds * 1e9))}"
    return ""


def age_of(time: str, now: datetime) -> str:
    """`3 min 10 s ago`, for an RFC 3339 time."""
    seconds = (now - datetime.fromisoformat(time)).total_seconds()
    return f"{format_duration(round(max(seconds, 0) * 1e9))} ago"


@contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on stderr while the block runs, if a person sits there."""
    if not sys.stderr.isatty():
        yield lambda _progress: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(progress: Progress) -> None:
            total = progress.total or None
            bars.update(task, description=progress.what, completed=progress.done, total=total)

        yield show
