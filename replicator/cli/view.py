# SPDX-License-Identifier: Apache-2.0
"""`replicator view`: looking at a point while replication goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replicator.base.errors import UsageError
from replicator.base.units import format_size, parse_duration_ns, parse_size
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.orders import number_of, point_option, unverified_option
from replicator.cli.output import NONE, note, print_choice, print_json, print_table

if TYPE_CHECKING:
    from replicator.control.types import View

NS_PER_S = 1_000_000_000


@click.group()
def view() -> None:
    """Look at a point while replication goes on (receiver)."""


@view.command("open")
@click.argument("group")
@point_option
@click.option("--writable", is_flag=True, help="Take writes, into a throw-away overlay.")
@click.option(
    "--overlay-max", metavar="SIZE", help="What the writes may take (with --writable; 10GiB)."
)
@click.option("--for", "lifetime", metavar="DURATION", help="Close it by itself after that.")
@click.option(
    "--tcp", "listen", metavar="ADDR[:PORT]", help="Serve on TCP, with TLS, instead of a socket."
)
@click.option("--plain", is_flag=True, help="No TLS; with --tcp on a loopback address.")
@click.option(
    "--allow",
    metavar="NAME",
    multiple=True,
    help="Whose certificate may read it over TCP, besides the group's agents; repeatable.",
)
@unverified_option
@takes_json
def view_open(
    invocation: Invocation,
    group: str,
    at: str,
    *,
    overlay_max: str | None,
    lifetime: str | None,
    listen: str | None,
    allow: tuple[str, ...],
    writable: bool,
    plain: bool,
    unverified: bool,
) -> None:
    """Serve the disks of GROUP as of POINT over NBD.

    Neither replica nor history is changed, whatever is written to a --writable view.
    """
    from replicator.control.orders import OPEN_VIEW
    from replicator.control.requests import ViewRequest

    request = ViewRequest(
        group=group,
        at=at,
        writable=writable,
        overlay_max_bytes=None if overlay_max is None else _size(overlay_max),
        lifetime_seconds=None if lifetime is None else _seconds(lifetime),
        listen=listen,
        plain=plain,
        allow=list(allow),
        unverified=unverified,
    )
    opened = invocation.order(OPEN_VIEW, request=request)
    print_choice(opened.choice, is_json=invocation.is_json)
    if invocation.is_json:
        print_json(opened.result)
        return
    end = f"replicator view close {opened.result.id} ends it"
    if opened.result.expires is not None:
        end += f", and it ends by itself at {opened.result.expires}"
    click.echo(f"view {opened.result.id} is open; {end}")
    print_table(("DISK", "URI"), sorted(opened.result.disks.items()))


@view.command("list")
@takes_json
def view_list(invocation: Invocation) -> None:
    """List the open views."""
    from replicator.control.orders import VIEWS

    views = invocation.order(VIEWS)
    if invocation.is_json:
        print_json(views)
    elif views:
        print_table(
            ("VIEW", "GROUP", "POINT", "TIME", "OPENED", "EXPIRES", "OVERLAY", "DISK", "URI"),
            [row for opened in views for row in _rows(opened)],
        )
    else:
        note("no view is open")


@view.command("close")
@click.argument("view_id", metavar="ID")
@takes_json
def view_close(invocation: Invocation, view_id: str) -> None:
    """Close view ID; whoever is connected to it is cut off."""
    from replicator.control.orders import CLOSE_VIEW

    invocation.order(CLOSE_VIEW, view_id)
    if invocation.is_json:
        print_json({"id": view_id})
    else:
        click.echo(f"view {view_id} is closed")


COMMANDS = (view,)


def _rows(opened: View) -> list[tuple[str, ...]]:
    point, overlay = opened.point, opened.overlay_bytes
    return [
        (
            opened.id,
            opened.group,
            number_of(point) + (f"+{opened.writes}w" if opened.writes else ""),
            point.time + (" UNVERIFIED" if point.unverified else ""),
            opened.opened,
            opened.expires or NONE,
            "read-only" if overlay is None else format_size(overlay),
            disk,
            uri,
        )
        for disk, uri in sorted(opened.disks.items())
    ]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"--overlay-max: {error}") from None


def _seconds(text: str) -> float:
    try:
        return parse_duration_ns(text) / NS_PER_S
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None
