# SPDX-License-Identifier: Apache-2.0
"""`status`: the groups of the daemons that run here, for people and for monitoring.

`--check` is for the latter: a line for each group, the worst first, and an exit code (what makes it
is in replicator.states.check). A daemon counts as one that should answer if its socket is there:
who was ended in order has taken it away, who was killed has not. CHECK_SECONDS is for all of it.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from replicator.base.errors import ReplicatorError, UnreachableError, UsageError
from replicator.base.units import format_duration, format_size, parse_duration_ns
from replicator.cli.invocation import Invocation, default_socket, takes_json
from replicator.cli.orders import number_of
from replicator.cli.output import NONE, age_of, note, print_json, print_table
from replicator.cli.window import describe_history
from replicator.states.check import NOW, SOON, Standing, exit_code
from replicator.states.words import RPO_ALARM_SECONDS

if TYPE_CHECKING:
    from replicator.control.types import DiskStatus, GroupStatus, Status

POLL_SECONDS = 0.05
CHECK_SECONDS = 2.0


@click.command()
@click.option("--check", is_flag=True, help="For monitoring: ends with 0 (good), 1 or 2.")
@click.option("--rpo", metavar="DURATION", help="With --check: points older than this are 2 (60s).")
@takes_json
def status(invocation: Invocation, *, check: bool, rpo: str | None) -> None:
    """Show the groups of the agent, the receiver, or whichever runs here."""
    if check:
        raise click.exceptions.Exit(_check(invocation, _limit(rpo)))
    if rpo is not None:
        raise UsageError("--rpo is for --check")
    from replicator.control.orders import STATUS

    # A socket that was named is asked whatever its role: both serve this.
    found = [invocation.order(STATUS)] if invocation.socket else _statuses_here()
    if invocation.is_json:
        print_json(found[0] if len(found) == 1 else found)
        return
    now = datetime.now(UTC)
    for number, one in enumerate(found):
        click.echo(("\n" if number else "") + f"{one.role} {one.name}")
        _print_groups(one, now)
        for text in _warnings(one):
            click.echo(text)
        for left in one.leftovers:
            size = "" if left.bytes is None else f", {format_size(left.bytes)}"
            click.echo(
                f"left over: {left.name}{size}, which the configuration does not name:"
                f" replicator forget {left.name} deletes it"
            )
        if one.clock is not None and one.clock.state == "good" and one.clock.why:
            click.echo(one.clock.why)


COMMANDS = (status,)


def _statuses_here() -> list[Status]:
    """Of each daemon that runs on this machine, once there is at least one."""
    from replicator.control.client import WAIT_SECONDS, ControlClient
    from replicator.control.orders import STATUS

    sockets = [default_socket("agent"), default_socket("receiver")]
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found = []
        for path in sockets:
            try:
                found.append(ControlClient(path, wait_seconds=0).order(STATUS))
            except UnreachableError:
                continue
        if found:
            return found
        if time.monotonic() >= deadline:
            raise UnreachableError(
                f"no daemon answers at {sockets[0]} or {sockets[1]}",
                hint="is one running here? --socket names another socket",
            )
        time.sleep(POLL_SECONDS)


def _print_groups(found: Status, now: datetime) -> None:
    headers = ("GROUP", "STATE", "RPO", "DURABLE", "APPLIED", "LAG", "POINTS", "NEWEST", "DISKS")
    print_table(headers, [_group_row(group, now) for group in found.groups])
    for group in found.groups:
        if group.reason:
            click.echo(f"{group.name}: {group.reason}")
        if group.remedy:
            click.echo(f"{group.name}: to do: {group.remedy}")
        if group.window_seconds is not None:
            click.echo(f"{group.name}: {describe_history(group)}")
        if group.unverified_points:
            click.echo(f"{group.name}: {_doubt(group)}")
        if group.damaged_points or group.scrub_bad:
            click.echo(
                f"{group.name}: {group.damaged_points or 0} points are damaged:"
                f" replicator scrub {group.name} --status"
            )


def _doubt(group: GroupStatus) -> str:
    """What is not served as true yet, and until when."""
    disks = ", ".join(group.unverified_disks)
    said = f"{group.unverified_points} points are UNVERIFIED until the replica of {disks} is read"
    if group.scrub_progress is None or group.scrub_rest_seconds is None:
        return f"{said}: replicator scrub {group.name}"
    rest = _age(group.scrub_rest_seconds)
    return (
        f"{said}: {group.scrub_progress:.0%} is done, the rest takes {rest} at most; replicator"
        f" scrub {group.name} --rate 1GiB makes it faster"
    )


def _group_row(group: GroupStatus, now: datetime) -> tuple[str, ...]:
    newest = group.newest_point
    return (
        group.name,
        group.state,
        NONE if group.rpo_seconds is None else _age(group.rpo_seconds),
        NONE if group.durable_lsn is None else str(group.durable_lsn),
        NONE if group.applied_lsn is None else str(group.applied_lsn),
        NONE if group.lag_bytes is None else format_size(group.lag_bytes),
        str(group.points),
        NONE if newest is None else f"{number_of(newest)} {age_of(newest.until, now)}",
        ", ".join(_disk(disk) for disk in group.disks) or NONE,
    )


def _disk(disk: DiskStatus) -> str:
    earlier = ", ".join(map(format_size, disk.earlier_sizes))
    return f"{disk.name} {format_size(disk.size)}" + (f" ({earlier} earlier)" if earlier else "")


def _warnings(found: Status) -> list[str]:
    """What there is to say of the daemon itself: nothing of it can wait for ever."""
    said = [found.certificate_warning] if found.certificate_warning else []
    if found.orders_refused:
        said.append(f"no order that changes something is carried out: {found.orders_refused}")
    for text in found.missing:
        said.append(f"the running splitter is too old for: {text} (until it is started anew)")
    if found.audit_breaks:
        said.append(f"the audit is broken in {found.audit_breaks} places: replicator audit verify")
    if found.clock is not None and found.clock.state != "good":
        said.append(f"clock {found.clock.state}: {found.clock.why}")
    return said


# -- for monitoring -------------------------------------------------------------------------------


def _limit(rpo: str | None) -> float:
    if rpo is None:
        return RPO_ALARM_SECONDS
    try:
        return parse_duration_ns(rpo) / 1_000_000_000
    except ValueError as error:
        raise UsageError(f"--rpo: {error}") from None


def _check(invocation: Invocation, rpo_seconds: float) -> int:
    """Prints what there is to say; the exit code."""
    sockets = [Path(invocation.socket)] if invocation.socket else _sockets_there()
    found, silent = _asked(sockets)
    for error in silent:
        note(f"{error.message}: {error.hint}" if error.hint else error.message)
    lines = [
        (exit_code(_standing(group), rpo_seconds), f"{one.role} {one.name}: {_line(group)}")
        for one in found
        for group in one.groups
    ]
    lines += [(SOON, f"{one.role} {one.name}: {text}") for one in found for text in _warnings(one)]
    if invocation.is_json:
        print_json(found)
    else:
        for _, line in sorted(lines, key=lambda each: -each[0]):
            click.echo(line)
    return max([code for code, _ in lines] + [NOW] * len(silent), default=0)


def _sockets_there() -> list[Path]:
    """Of the daemons that should answer; both where there is none at all."""
    both = [default_socket("agent"), default_socket("receiver")]
    return [path for path in both if path.exists()] or both


def _asked(sockets: list[Path]) -> tuple[list[Status], list[ReplicatorError]]:
    """What they say, and why those that say nothing do not."""
    from replicator.control.client import ControlClient
    from replicator.control.orders import STATUS

    found: list[Status] = []
    silent: list[ReplicatorError] = []
    until = time.monotonic() + CHECK_SECONDS
    for number, path in enumerate(sockets):
        left = (until - time.monotonic()) / (len(sockets) - number)
        client = ControlClient(path, wait_seconds=left / 2, silence_seconds=left / 2)
        try:
            found.append(client.order(STATUS))
        except ReplicatorError as error:
            silent.append(error)
    return found, silent


def _standing(group: GroupStatus) -> Standing:
    return Standing(
        group.state,
        group.rpo_seconds,
        group.unprotected_seconds,
        end_watched=bool(group.end_watched),
    )


def _line(group: GroupStatus) -> str:
    age = "no point" if group.rpo_seconds is None else f"{_age(group.rpo_seconds)} old"
    text = f"{group.name}: {group.state}, {age}"
    if group.reason:
        text += f": {group.reason}"
    return f"{text} [{group.remedy}]" if group.remedy else text


def _age(seconds: float) -> str:
    return format_duration(round(seconds * 1e9))
