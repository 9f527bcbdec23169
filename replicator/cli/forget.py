# SPDX-License-Identifier: Apache-2.0
"""`forget`: removes for good what is left of a group that the configuration does not name.

On a KVM host that is its spool, what still copies into it, and what the agent remembered; at the DR
site its replica and its whole history. What would go is shown first, and a person types the group's
name; a script gives it by --confirm.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from replicator.base.errors import NotFoundError, UsageError
from replicator.base.units import format_size
from replicator.cli.history import ask_for_name
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import note, print_json
from replicator.cli.reload import clients_here

if TYPE_CHECKING:
    from replicator.control.client import ControlClient
    from replicator.control.requests import ForgetRequest
    from replicator.control.types import ForgetResult


@click.command()
@click.argument("group")
@click.option("--confirm", metavar="GROUP", default="", help="Do not ask: the name once more.")
@click.option("--break-lock", is_flag=True, help="Also points that are locked (receiver).")
@click.option("--reason", metavar="TEXT", default="", help="Why the lock is broken; for the audit.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and change nothing.")
@takes_json
def forget(
    invocation: Invocation,
    group: str,
    confirm: str,
    reason: str,
    *,
    break_lock: bool,
    dry_run: bool,
) -> None:
    """Remove for good what is left of GROUP, which the configuration does not name any more."""
    from replicator.control.requests import ForgetRequest

    done: list[ForgetResult] = []
    for client, role, plan in _plans(invocation, group):
        if not invocation.is_json:
            note(_described(role, plan))
        if dry_run:
            done.append(plan)
            continue
        if not confirm:
            _require_terminal()
            ask_for_name(group, "deletes it for good")
            confirm = group
        is_receiver = role == "receiver"
        request = ForgetRequest(
            confirm=confirm,
            break_lock=break_lock and is_receiver,
            reason=reason if is_receiver else "",
        )
        done.append(_forget(client, group, request, is_json=invocation.is_json))
    if invocation.is_json:
        print_json(done[0] if len(done) == 1 else done)


def _plans(invocation: Invocation, group: str) -> list[tuple[ControlClient, str, ForgetResult]]:
    """Of each daemon here that has something of it. Raises NotFoundError, UsageError."""
    from replicator.control.orders import FORGET, STATUS
    from replicator.control.requests import ForgetRequest

    found: list[tuple[ControlClient, str, ForgetResult]] = []
    missing: NotFoundError | None = None
    for client in clients_here(invocation):
        try:
            plan = client.order(FORGET, group, ForgetRequest(dry_run=True))
        except NotFoundError as error:
            missing = error
            continue
        found.append((client, client.order(STATUS).role, plan))
    if not found and missing is not None:
        raise missing
    return found


def _forget(
    client: ControlClient, group: str, request: ForgetRequest, *, is_json: bool
) -> ForgetResult:
    from replicator.control.orders import FORGET

    done = client.order(FORGET, group, request)
    if not is_json:
        click.echo(f"group {group}: {format_size(done.bytes)} are free")
        if done.copies:
            click.echo(f"block copies ended: {', '.join(done.copies)}")
        if done.notice:
            note(done.notice)
    return done


def _described(role: str, plan: ForgetResult) -> str:
    lines = [f"{role}: {format_size(plan.bytes)} of group {plan.group}"]
    if plan.points:
        locked = f", {plan.locked_points} of them locked" if plan.locked_points else ""
        lines.append(f"  {plan.points} recovery points{locked}")
    lines += [f"  {place}" for place in plan.places]
    return "\n".join(lines)


def _require_terminal() -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            "forget asks for the name of the group, and there is no terminal to ask at",
            hint="give --confirm GROUP",
        )


COMMANDS = (forget,)
