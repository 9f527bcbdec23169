# SPDX-License-Identifier: Apache-2.0
"""The commands that a daemon carries out. Each returns when the thing is done.

POINT and times are passed on as they were typed: the receiver resolves them against its points
and says what it chose.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from replicator.base.errors import UsageError
from replicator.base.pointtext import check_label
from replicator.base.units import format_duration, format_size, parse_duration_ns
from replicator.cli.history import Listing, drop
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import (
    NONE,
    confirm,
    describe_choice,
    describe_clock,
    describe_point,
    note,
    print_choice,
    print_json,
    print_table,
    require_terminal,
)
from replicator.cli.paths import folder_type

if TYPE_CHECKING:
    from replicator.control.requests import PointsRequest
    from replicator.control.types import Chosen, Point, RollbackPlan

WAIT_SECONDS = 600  # for a mark to be a point
POINTS_SHOWN = 50  # to a person who says nothing of how many

unverified_option = click.option(
    "--unverified",
    is_flag=True,
    help="Also a point whose replica is not verified yet: it may be FALSE. Said in the audit.",
)
point_option = click.option(
    "--at",
    "at",
    metavar="POINT",
    required=True,
    help='latest, "#12", "#12+3w", a label, "2026-03-01 14:00", "yesterday 14:00", or "10m ago".',
)


@click.command()
@click.argument("group")
@click.option("--label", help="Name of the point; unique in its group.")
@click.option("--quiesce", is_flag=True, help="Freeze the guests' filesystems for the moment.")
@click.option("--expire", metavar="DURATION", help='Keep it from thinning this long, as "30d".')
@click.option("--wait", is_flag=True, help="Return when the point is durable at the receiver.")
@click.option("--timeout", metavar="DURATION", help="With --wait: for how long (10min).")
@takes_json
def mark(
    invocation: Invocation,
    group: str,
    label: str | None,
    expire: str | None,
    timeout: str | None,
    *,
    quiesce: bool,
    wait: bool,
) -> None:
    """Bookmark this moment of GROUP (agent)."""
    from replicator.control.orders import MARK
    from replicator.control.requests import MarkRequest

    if label is not None:
        check_label(label)
    elif not quiesce:
        raise UsageError("a mark has a label, or quiesces, or both", hint="give --label TEXT")
    if timeout is not None and not wait:
        raise UsageError("--timeout is for --wait")
    request = MarkRequest(
        label=label,
        wait=wait,
        quiesce=quiesce,
        expire_seconds=0 if expire is None else _seconds("--expire", expire),
        timeout_seconds=WAIT_SECONDS if timeout is None else _seconds("--timeout", timeout),
    )
    point = invocation.order(MARK, group, request)
    if point.notice:
        note(point.notice)
    if invocation.is_json:
        print_json(point)
        return
    frozen = point.frozen_seconds
    if frozen is not None:
        note(f"the guests were frozen for {format_duration(round(frozen * 1e9))}")
    if wait:
        click.echo(f"{describe_point(point)} is durable at the receiver")
    else:
        name = f" as {label!r}" if label is not None else ""
        click.echo(f"marked {point.time}{name}; it is a point once the receiver has it")


def _seconds(option: str, text: str) -> int:
    """A duration of whole seconds, at least one."""
    from replicator.control.requests import EXPIRE_SECONDS_MAX

    try:
        seconds = parse_duration_ns(text) // 1_000_000_000
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if not 1 <= seconds <= EXPIRE_SECONDS_MAX:
        raise UsageError(f"{option}: {text!r} is not between 1s and 100 years")
    return seconds


@click.command()
@click.argument("group")
@takes_json
def resync(invocation: Invocation, group: str) -> None:
    """Make the replica of GROUP equal to its live disks again (agent)."""
    from replicator.control.orders import RESYNC

    status = invocation.order(RESYNC, group)
    if invocation.is_json:
        print_json(status)
    else:
        click.echo(f"group {status.name}: {status.state}")


@click.group(cls=Listing)
def points() -> None:
    """Recovery points: `points GROUP` lists them, `points drop` gives some up (receiver)."""


points.add_command(drop)


@points.command("list")
@click.argument("group")
@click.option("--since", metavar="TIME", help='A time, or "10m ago"; inclusive.')
@click.option("--until", metavar="TIME", help="As --since.")
@click.option("--last", type=click.IntRange(1, 10_000), help="The newest so many of them.")
@click.option("--all", "is_all", is_flag=True, help="All of them, on a terminal as well.")
@click.option("--writes", "around", metavar="AROUND", help="Single writes around a time or POINT.")
@click.option("--window", metavar="DURATION", help="How far around, on either side (2s).")
@click.option("--limit", type=click.IntRange(1, 10_000), help="At most so many writes (200).")
@takes_json
def points_list(
    invocation: Invocation,
    group: str,
    *,
    since: str | None,
    until: str | None,
    around: str | None,
    window: str | None,
    limit: int | None,
    last: int | None,
    is_all: bool,
) -> None:
    """List the recovery points of GROUP, oldest first, or single writes (receiver).

    On a terminal the newest 50, unless a range, --last, --all or --json says otherwise.
    """
    from replicator.control.requests import PointsRequest

    if last and is_all:
        raise UsageError("--last and --all do not go together")
    if around is not None:
        if last or is_all:
            raise UsageError("--last and --all are for points, --limit is for --writes")
        if since or until:
            raise UsageError("--writes looks around a moment, not between --since and --until")
        _list_writes(invocation, group, around, window, limit)
        return
    if window or limit:
        raise UsageError("--window and --limit are for --writes")
    if last is None and not (is_all or invocation.is_json or since or until):
        last = POINTS_SHOWN if sys.stdout.isatty() else None
    asked = PointsRequest(since=since, until=until)
    found, earlier = _points(invocation, group, asked, last)
    if invocation.is_json:
        print_json(found)
    elif found:
        print_table(
            ("POINT", "TIME", "UNTIL", "KIND", "LABEL"),
            [(number_of(p), p.time, p.until, _kind(p), p.label or NONE) for p in found],
        )
        if earlier:
            noun = "point is" if earlier == 1 else "points are"
            note(f"{earlier} earlier {noun} not shown; --last N shows more, --all shows all")
    else:
        note(f"group {group} has no points" + (" in that range" if since or until else " yet"))


def _points(
    invocation: Invocation, group: str, asked: PointsRequest, last: int | None
) -> tuple[list[Point], int]:
    """Those that are to be shown, and how many of what was asked for are not."""
    import msgspec

    from replicator.control.orders import POINT_PAGE, POINTS
    from replicator.control.requests import PointPageRequest

    if last is None:
        return invocation.order(POINTS, group, asked), 0
    request = PointPageRequest(**msgspec.structs.asdict(asked), limit=last)
    page = invocation.order(POINT_PAGE, group, request)
    return page.points, page.earlier


def _list_writes(
    invocation: Invocation, group: str, around: str, window: str | None, limit: int | None
) -> None:
    from replicator.control.orders import WRITES
    from replicator.control.requests import WRITES_LIMIT, WRITES_WINDOW, WritesRequest

    request = WritesRequest(
        around=around, window=window or WRITES_WINDOW, limit=limit or WRITES_LIMIT
    )
    found = invocation.order(WRITES, group, request)
    if invocation.is_json:
        print_json(found)
    elif found:
        print_table(
            ("POINT", "TIME", "DISK", "OFFSET", "LENGTH", "KIND"),
            [(w.point, w.time, w.disk, str(w.offset), str(w.length), w.kind) for w in found],
        )
    else:
        note(f"group {group} has no single writes there")


@click.command()
@click.argument("group")
@click.option("--to", "to", metavar="POINT", required=True, help="As --at of view open.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--force-detach",
    is_flag=True,
    help="Also while a source is connected: end its connection; it has to sync anew.",
)
@takes_json
def rollback(
    invocation: Invocation, group: str, to: str, *, dry_run: bool, yes: bool, force_detach: bool
) -> None:
    """Take the replica of GROUP back to POINT (receiver).

    Refused while a source is connected, unless --force-detach is given. The state before is kept
    as a point of its own: a rollback to that one is the undo.
    """
    from replicator.control.orders import ROLLBACK
    from replicator.control.requests import RollbackRequest

    if dry_run:
        _show_plan(invocation, group, _plan(invocation, group, to))
        return
    if not yes:
        to = _confirmed(invocation, group, to)
    request = RollbackRequest(to=to, force_detach=force_detach)
    done = invocation.order(ROLLBACK, group, request)
    if yes:
        print_choice(done.choice, is_json=invocation.is_json)
    if invocation.is_json:
        print_json(done.result)
        return
    click.echo(f"group {group} is rolled back: {describe_point(done.result)}")
    click.echo(f"undo with: replicator rollback {group} --to '{number_of(done.result.before)}'")


def _plan(invocation: Invocation, group: str, to: str) -> Chosen[RollbackPlan]:
    from replicator.control.orders import PLAN_ROLLBACK
    from replicator.control.requests import RollbackRequest

    return invocation.order(PLAN_ROLLBACK, group, RollbackRequest(to=to, dry_run=True))


def _show_plan(invocation: Invocation, group: str, plan: Chosen[RollbackPlan]) -> None:
    print_choice(plan.choice, is_json=invocation.is_json)
    if invocation.is_json:
        print_json(plan.result)
    else:
        click.echo(_describe_plan(group, plan.result))


def _confirmed(invocation: Invocation, group: str, to: str) -> str:
    """The point that a person agreed to, by its number: whatever comes in meanwhile, it is the
    one that was shown."""
    require_terminal("a rollback")
    plan = _plan(invocation, group, to)
    note(f"{to!r} is {describe_choice(plan.choice)}")
    note(_describe_plan(group, plan.result))
    confirm("Roll back?")
    writes = plan.choice.writes
    return f"#{plan.choice.point.sequence}" + (f"+{writes}w" if writes else "")


def _describe_plan(group: str, plan: RollbackPlan) -> str:
    text = (
        f"a rollback of group {group} changes {format_size(plan.changed_bytes)}"
        f" ({plan.changed_blocks} blocks, about"
        f" {format_duration(round(plan.expected_seconds * 1e9))}) on "
        f"{', '.join(plan.disks)}; newer points ({plan.points_after}) stay reachable"
    )
    if plan.fed_by is not None:
        text += f"; {plan.fed_by} feeds it: that takes --force-detach, and the source must resync"
    return text


@click.command()
@click.argument("group")
@point_option
@click.option(
    "--to",
    "to",
    metavar="DIR",
    required=True,
    type=folder_type,
    help="Folder for the images, on the receiver's machine; it is created.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["raw", "qcow2"]),
    default="raw",
    show_default=True,
    help="Of the images; qcow2 takes qemu-img on the receiver's machine.",
)
@click.option("--resume", is_flag=True, help="Go on with what an interrupted restore left in DIR.")
@click.option("--no-verify", is_flag=True, help="Do not read the images back.")
@unverified_option
@takes_json
def restore(
    invocation: Invocation,
    group: str,
    at: str,
    to: Path,
    *,
    image_format: Literal["raw", "qcow2"],
    resume: bool,
    no_verify: bool,
    unverified: bool,
) -> None:
    """Write POINT of GROUP into new images (receiver)."""
    from replicator.control.orders import RESTORE
    from replicator.control.requests import RestoreRequest

    request = RestoreRequest(
        at=at,
        to=os.path.abspath(to),
        format=image_format,
        resume=resume,
        verify=not no_verify,
        unverified=unverified,
    )
    done = invocation.order(RESTORE, group, request)
    print_choice(done.choice, is_json=invocation.is_json)
    if invocation.is_json:
        print_json(done.result)
        return
    for file in done.result.files:
        click.echo(file)


COMMANDS = (mark, resync, points, rollback, restore)


def _kind(point: Point) -> str:
    words = (
        point.kind,
        "damaged" if point.damaged else "",
        "UNVERIFIED" if point.unverified else "",
        describe_clock(point),
    )
    return ", ".join(filter(None, words))


def number_of(point: Point) -> str:
    return NONE if point.sequence is None else f"#{point.sequence}"
