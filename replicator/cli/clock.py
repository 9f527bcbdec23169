# SPDX-License-Identifier: Apache-2.0
"""`clock accept`: a person says that the time of the receiver's machine is right.

Points age by it at once, so it shows what that comes to and asks, or needs --yes where nobody can
be asked.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from replicator.base.errors import UsageError
from replicator.base.units import format_duration
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import confirm, note, print_json

if TYPE_CHECKING:
    from replicator.control.types import ClockAccepted


@click.group("clock")
def clock() -> None:
    """Look after the clock by which points age (receiver)."""


@clock.command("accept")
@click.option("--reason", metavar="TEXT", default="", help="Why, where locks end sooner by it.")
@click.option("--dry-run", is_flag=True, help="Say what it would do, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@takes_json
def accept(invocation: Invocation, reason: str, *, dry_run: bool, yes: bool) -> None:
    """The time of the receiver's machine is right: let points age by it (receiver).

    After a jump of the machine's clock, or a boot, points age by what is known to have passed,
    until agents that are connected for ten minutes confirm the time by their clocks, or this does.
    """
    from replicator.control.orders import ACCEPT_CLOCK
    from replicator.control.requests import AcceptClockRequest

    if not dry_run and not yes:
        _confirm(invocation)
    request = AcceptClockRequest(reason=reason, dry_run=dry_run)
    done = invocation.order(ACCEPT_CLOCK, request=request)
    if invocation.is_json:
        print_json(done)
    else:
        click.echo(_described(done))


def _confirm(invocation: Invocation) -> None:
    from replicator.control.orders import ACCEPT_CLOCK
    from replicator.control.requests import AcceptClockRequest

    if not sys.stdin.isatty():
        raise UsageError(
            "accepting the machine's time asks for confirmation, and there is no terminal here",
            hint="give --yes, or --dry-run to see what it would do",
        )
    plan = invocation.order(ACCEPT_CLOCK, request=AcceptClockRequest(dry_run=True))
    note(_described(plan))
    confirm("Is the machine's time right?")


def _described(done: ClockAccepted) -> str:
    verb = "would go" if done.dry_run else "went"
    forward, lock = (
        format_duration(round(seconds * 1e9))
        for seconds in (done.forward_seconds, done.lock_forward_seconds)
    )
    if not done.lock_forward_seconds and not done.forward_seconds:
        return f"nothing to accept; the clock is {done.clock.state}" + (
            f": {done.clock.why}" if done.clock.why else ""
        )
    lines = [f"the clock that points age by {verb} forward by {forward}, that of locks by {lock}"]
    lines += [
        f"group {name}: {count} {'point is' if count == 1 else 'points are'} too old for keep by it"
        for name, count in done.points.items()
    ]
    if done.dry_run and done.takes_reason:
        lines.append("it takes --reason TEXT: locks end sooner by it")
    return "\n".join(lines)


COMMANDS = (clock,)
