# SPDX-License-Identifier: Apache-2.0
"""`replicator scrub`: read a group's replica and history back, and see what was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replicator.base.errors import DamageError, UsageError
from replicator.base.units import format_size, parse_size
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import NONE, note, print_json, print_table

if TYPE_CHECKING:
    from replicator.control.types import BadPlace, ScrubReport

POINTS_SHOWN = 5


@click.command()
@click.argument("group")
@click.option("--wait", "waits", flag_value=True, default=True, help="Until it ends (the default).")
@click.option("--background", "waits", flag_value=False, help="Return when it has begun.")
@click.option("--rate", metavar="SIZE", help="Read at most so much a second, as 100MiB.")
@click.option("--status", "is_look", is_flag=True, help="Show the last one, or the one under way.")
@click.option("--cancel", "is_end", is_flag=True, help="Give up the one under way.")
@takes_json
def scrub(
    invocation: Invocation,
    group: str,
    rate: str | None,
    *,
    waits: bool,
    is_look: bool,
    is_end: bool,
) -> None:
    """Read replica and history of GROUP back, name what is bad, heal what has a copy (receiver).

    Ends with code 13 where something bad is left.
    """
    from replicator.control.orders import CANCEL_SCRUB, SCRUB, SCRUBBED
    from replicator.control.requests import ScrubRequest

    if is_end and (is_look or rate is not None):
        raise UsageError("--cancel goes with no other option")
    if is_end:
        report = invocation.order(CANCEL_SCRUB, group)
    elif is_look:
        report = invocation.order(SCRUBBED, group)
    else:
        report = invocation.order(SCRUB, group, ScrubRequest(wait=waits, rate=_rate(rate)))
    if invocation.is_json:
        print_json(report)
    else:
        _print(group, report)
    left = [bad for bad in report.bad if not bad.healed]
    if left:
        raise DamageError(
            f"group {group}: {len(left)} bad place{'s' if len(left) > 1 else ''} could not be"
            " healed",
            hint=f"`replicator resync {group}` at the agent brings the replica in order; the points"
            " that are named stay damaged unless the source still holds what they need",
        )


def _rate(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        rate = parse_size(text)
    except ValueError as error:
        raise UsageError(f"--rate: {error}") from None
    if rate <= 0:
        raise UsageError("--rate: must be more than 0")
    return rate


def _print(group: str, report: ScrubReport) -> None:
    if report.began is None:
        click.echo(f"group {group} was never scrubbed")
        return
    if report.running:
        done, total = format_size(report.done_bytes), format_size(report.total_bytes)
        click.echo(f"a scrub of group {group} runs since {report.began}: {done} of {total}")
    elif report.cancelled is not None:
        click.echo(f"a scrub of group {group} was cancelled at {report.cancelled}")
    else:
        click.echo(
            f"group {group} was scrubbed until {report.ended}: replica"
            f" {format_size(report.replica_bytes)}, history {format_size(report.history_bytes)},"
            f" {len(report.bad)} bad"
        )
    if report.unverified_bytes:
        note(f"{format_size(report.unverified_bytes)} of the replica have no sum to check them by")
    if report.bad:
        print_table(
            ("WHERE", "DISK", "AT", "LENGTH", "HEALED", "POINTS", "FILE", "OFFSET"),
            [_row(bad) for bad in report.bad],
        )


def _row(bad: BadPlace) -> tuple[str, ...]:
    points = ", ".join(f"#{number}" for number in bad.points[:POINTS_SHOWN])
    more = len(bad.points) - POINTS_SHOWN
    return (
        bad.where,
        bad.disk or NONE,
        str(bad.block_offset) if bad.disk else NONE,
        str(bad.length) if bad.disk else NONE,
        "yes" if bad.healed else "no",
        (points or NONE) + (f", … {more} more" if more > 0 else ""),
        bad.file,
        str(bad.offset),
    )


COMMANDS = (scrub,)
