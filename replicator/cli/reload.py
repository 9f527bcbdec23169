# SPDX-License-Identifier: Apache-2.0
"""`reload`: a changed configuration is taken over by the daemons that run here.

On a KVM host the agent takes it over, and orders the splitter to do so first; at the DR site the
receiver does. What would change is asked for beforehand, and shown; where something goes, a person
is asked. What goes is not deleted: `forget` does that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replicator.base.errors import UnreachableError
from replicator.cli.invocation import Invocation, default_socket, takes_json
from replicator.cli.output import confirm, note, print_json, require_terminal

if TYPE_CHECKING:
    from replicator.control.client import ControlClient
    from replicator.control.types import ConfigChange, ReloadResult


@click.command()
@click.option("--yes", is_flag=True, help="Do not ask where something goes.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@takes_json
def reload(invocation: Invocation, yes: bool, dry_run: bool) -> None:
    """Take a changed configuration over, without a restart (agent and splitter, receiver)."""
    from replicator.control.orders import RELOAD
    from replicator.control.requests import ReloadRequest

    done: list[ReloadResult] = []
    for client in clients_here(invocation):
        plan = client.order(RELOAD, request=ReloadRequest(dry_run=True))
        if not invocation.is_json:
            _show(plan)
        gone = [change.place for change in plan.changes if change.kind == "removed"]
        if dry_run:
            done.append(plan)
            continue
        if gone and not yes:
            require_terminal("a reload that takes something away")
            confirm(f"Take {', '.join(gone)} out of service?")
        done.append(client.order(RELOAD, request=ReloadRequest(removes_too=bool(gone))))
    if invocation.is_json:
        print_json(done[0] if len(done) == 1 else done)


def clients_here(invocation: Invocation) -> list[ControlClient]:
    """The daemon that was named, or each that runs here. Raises UnreachableError."""
    from replicator.control.client import ControlClient
    from replicator.control.orders import STATUS

    if invocation.socket:
        return [invocation.client("agent")]
    found = []
    for role in ("agent", "receiver"):
        client = ControlClient(default_socket(role), wait_seconds=0)
        try:
            client.order(STATUS)
        except UnreachableError:
            continue
        found.append(client)
    if not found:
        raise UnreachableError(
            "neither an agent nor a receiver runs here",
            hint="a daemon that is started reads its configuration anyway",
        )
    return found


def _show(plan: ReloadResult) -> None:
    click.echo(f"{plan.role} {plan.name}")
    if not plan.changes:
        click.echo("  nothing has changed")
    for change in plan.changes:
        click.echo(f"  {_in_words(change)}")
    if any(not change.live for change in plan.changes):
        note("what waits for a restart stays as it is until then")


def _in_words(change: ConfigChange) -> str:
    if change.kind != "changed":
        return f"{change.place}: {change.kind}"
    late = "" if change.live else ", after a restart"
    return f"{change.place}: {change.before or 'nothing'} → {change.after or 'nothing'}{late}"


COMMANDS = (reload,)
