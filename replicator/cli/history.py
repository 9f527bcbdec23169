# SPDX-License-Identifier: Apache-2.0
"""`points drop`, `history unlock` and `history accept`: giving up some of a history on purpose.

None is done by a slip: both say what they are about to do and ask, or need --yes where nobody
can be asked. What breaks a lock is asked for by the group's name when a person sits there, --yes or
not.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from replicator.base.errors import ReplicatorError, UsageError
from replicator.base.units import format_duration, format_size
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import (
    confirm,
    describe_point,
    note,
    print_json,
    require_terminal,
)

if TYPE_CHECKING:
    from replicator.control.requests import DropRequest
    from replicator.control.types import DropResult

SHOWN_MAX = 10


class Listing(click.Group):
    """A group of commands that runs `list` where none of them is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        is_named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if is_named else ["list", *args])


@click.command("drop")
@click.argument("group")
@click.argument("points", nargs=-1, metavar="POINT…")
@click.option("--older-than", metavar="AGE", help='Also those older than this, as "3d".')
@click.option("--break-lock", is_flag=True, help="Also those that the lock protects.")
@click.option("--reason", metavar="TEXT", default="", help="Why the lock is broken; for the audit.")
@click.option("--dry-run", is_flag=True, help="Say what would be given up, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@takes_json
def drop(
    invocation: Invocation,
    group: str,
    points: tuple[str, ...],
    older_than: str | None,
    reason: str,
    *,
    break_lock: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Give up POINTs of GROUP for good, before retention would (receiver).

    Locked points refuse it, and so do the newest one, those that a view shows, and the way back
    from the newest rollback. --older-than passes over these, and over points with a label.
    """
    from replicator.control.orders import DROP_POINTS
    from replicator.control.requests import DropRequest

    request = DropRequest(
        points=list(points),
        older_than=older_than,
        dry_run=True,
        break_lock=break_lock,
        reason=reason,
    )
    request.require_choice()
    if dry_run:
        _show(invocation, group, invocation.order(DROP_POINTS, group, request))
        return
    if not yes or (break_lock and sys.stdin.isatty()):
        request = _confirmed(invocation, group, request)
    _show(invocation, group, invocation.order(DROP_POINTS, group, _in_earnest(request)))


@click.group("history")
def history() -> None:
    """Look after what is kept (receiver)."""


@history.command("unlock")
@click.argument("group")
@click.option("--break-lock", is_flag=True, help="Says that this is meant.")
@click.option("--reason", metavar="TEXT", default="", help="Why; for the audit.")
@takes_json
def unlock(invocation: Invocation, group: str, reason: str, *, break_lock: bool) -> None:
    """Take the lock of GROUP's history down to the min_lock of the configuration."""
    from replicator.control.orders import UNLOCK
    from replicator.control.requests import UnlockRequest

    if not break_lock or not reason.strip():
        raise UsageError("an unlock needs --break-lock and --reason TEXT")
    if sys.stdin.isatty():
        ask_for_name(group, "breaks the lock of its history")
    done = invocation.order(UNLOCK, group, UnlockRequest(break_lock=break_lock, reason=reason))
    if invocation.is_json:
        print_json(done)
        return
    before, now = (
        format_duration(round(seconds * 1e9))
        for seconds in (done.lock_seconds_before, done.lock_seconds)
    )
    click.echo(f"group {group}: points are locked for {now}; it was {before}")


@history.command("accept")
@click.argument("group")
@click.option("--reason", metavar="TEXT", default="", help="Why; for the audit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@takes_json
def accept(invocation: Invocation, group: str, reason: str, *, yes: bool) -> None:
    """Go on with GROUP without what it has stopped for, as lost (receiver).

    `status` says what that is, and what would set it right. What cannot be proven to be right is
    damaged from then on and never served, the stream is closed, and the source has to resync.
    """
    from replicator.control.orders import ACCEPT
    from replicator.control.requests import AcceptRequest

    if not reason.strip():
        raise UsageError("history accept needs --reason TEXT")
    if not yes:
        require_terminal("history accept", hint="give --yes")
        ask_for_name(group, "goes on without what is gone, for good")
    done = invocation.order(ACCEPT, group, AcceptRequest(reason=reason))
    if invocation.is_json:
        print_json(done)
        return
    click.echo(
        f"group {group} goes on: {done.points} points can be had, {done.damaged_points} cannot;"
        f" the next one is #{done.next_point}"
    )


def _confirmed(invocation: Invocation, group: str, request: DropRequest) -> DropRequest:
    """What a person agreed to, by the numbers of the points: time goes on meanwhile."""
    from replicator.control.orders import DROP_POINTS
    from replicator.control.requests import DropRequest

    require_terminal("giving up points")
    plan = invocation.order(DROP_POINTS, group, request)
    note(_described(group, plan))
    if not plan.points:
        return request
    if request.break_lock:
        ask_for_name(group, "breaks the lock of these points")
    else:
        confirm("Give them up for good?")
    return DropRequest(
        points=[f"#{point.sequence}" for point in plan.points],
        break_lock=request.break_lock,
        reason=request.reason,
    )


def _in_earnest(request: DropRequest) -> DropRequest:
    import msgspec

    return msgspec.structs.replace(request, dry_run=False)


def ask_for_name(group: str, what: str) -> None:
    typed = click.prompt(f"This {what}. Type the name of the group", err=True, default="")
    if typed != group:
        raise ReplicatorError("not confirmed; nothing was done")


def _show(invocation: Invocation, group: str, result: DropResult) -> None:
    if invocation.is_json:
        print_json(result)
    else:
        click.echo(_described(group, result))


def _described(group: str, result: DropResult) -> str:
    count = len(result.points)
    noun = "point" if count == 1 else "points"
    verb = "would be given up" if result.dry_run else "given up"
    lines = [f"group {group}: {count} {noun} {verb}"]
    lines += [f"  {describe_point(point)}" for point in result.points[:SHOWN_MAX]]
    if count > SHOWN_MAX:
        lines.append(f"  and {count - SHOWN_MAX} more, up to {describe_point(result.points[-1])}")
    if not result.dry_run and count:
        lines.append(
            f"{format_size(result.freed_bytes)} are free by it, about"
            f" {format_size(result.to_come_bytes)} to come"
        )
    return "\n".join(lines)


COMMANDS = (history,)
