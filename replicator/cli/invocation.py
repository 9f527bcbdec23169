# SPDX-License-Identifier: Apache-2.0
"""What was said before the command, and which daemon's socket follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from replicator.cli.output import progress_bar
from replicator.cli.zone import local_zone

if TYPE_CHECKING:
    from replicator.control.client import ControlClient
    from replicator.control.orders import A, Order, Q

Role = Literal["agent", "receiver"]  # not that of control.types: the command begins without it


@dataclass(frozen=True, slots=True)
class Invocation:
    """`socket` as given by option or environment, if it was."""

    socket: str | None
    is_json: bool

    def order(self, order: Order[Q, A], name: str = "", request: Q | None = None) -> A:
        """Has the daemon carry it out whose order it is; a bar shows how far a long one has come.
        `name`: of the group or view that it is about."""
        client = self.client(order.roles[0])
        if not order.is_long:
            return client.order(order, name, request)
        with progress_bar() as on_progress:
            return client.order(order, name, request, on_progress)

    def client(self, role: Role) -> ControlClient:
        """The daemon that was named, or this machine's `role` at its default socket."""
        from replicator.control.client import ControlClient

        path = Path(self.socket) if self.socket else default_socket(role)
        return ControlClient(path, zone=local_zone())


def default_socket(role: Role) -> Path:
    from replicator.config.agent import AgentSection
    from replicator.config.receiver import ReceiverSection

    return AgentSection().control if role == "agent" else ReceiverSection().control


def takes_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command `--json` of its own, and the invocation with both of them heeded."""

    def note(context: click.Context, _option: click.Parameter, is_json: bool) -> None:
        invocation = context.find_object(Invocation)
        if is_json and invocation is not None:
            context.obj = replace(invocation, is_json=True)

    option = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=note,
        help="Results as JSON on stdout.",
    )
    return option(click.pass_obj(function))
