# SPDX-License-Identifier: Apache-2.0
"""`replicator journal`: the tools for a bare spool, inbox or history. They need no daemon, and
write nothing but what they are asked to make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from replicator.base.errors import DamageError, UsageError
from replicator.base.units import format_size
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import note, print_json, progress_bar
from replicator.cli.paths import folder_type, path_type
from replicator.cli.zone import local_zone

if TYPE_CHECKING:
    from receiver.check.verify import SegmentReport
    from receiver.offline.audit_check import AuditReport
    from receiver.offline.whole import HistoryReport


@click.group()
def journal() -> None:
    """Look into a spool, an inbox or a history, with no daemon."""


@journal.command("inspect")
@click.argument("path", type=path_type)
def journal_inspect(path: Path) -> None:
    """Print what the segment or folder PATH holds, one record a line."""
    from journal.dump import inspect_path
    from receiver.offline.words import describe_record

    for line in inspect_path(path, describe_record):
        click.echo(line)


@journal.command("head")
@click.argument("path", type=path_type)
@takes_json
def journal_head(invocation: Invocation, path: Path) -> None:
    """Print the digest that stands for all sealed segments of each history under PATH.

    Kept elsewhere, it proves later that nothing before it was changed: see --expect-head of
    journal verify.
    """
    from receiver.check.places import find_histories
    from receiver.offline.whole import head_of
    from replicator.base.storage import SystemStorage

    storage = SystemStorage()
    heads = {place.group: head_of(storage, place) for place in find_histories(storage, path)}
    if invocation.is_json:
        print_json({name: {"end": end, "digest": digest} for name, (end, digest) in heads.items()})
        return
    for group, (end, digest) in heads.items():
        click.echo(f"{digest or '-'}  {group}  up to position {end}")


@journal.command("verify")
@click.argument("paths", metavar="PATH…", nargs=-1, required=True, type=path_type)
@click.option("--expect-head", metavar="DIGEST", help="A digest that journal head gave earlier.")
@takes_json
def journal_verify(
    invocation: Invocation, paths: tuple[Path, ...], expect_head: str | None
) -> None:
    """Verify every byte and every link of the histories under PATH….

    A PATH is a data_dir (its audit is verified too), a group's directory in it, or a copy of a
    history. All faults are found; then this ends with code 13.
    """
    from receiver.offline.whole import verify_paths
    from replicator.base.storage import SystemStorage

    if expect_head is not None and not _is_digest(expect_head):
        raise UsageError("a digest is 64 hexadecimal digits", hint="journal head prints it")
    with progress_bar() as on_progress:
        found = verify_paths(SystemStorage(), paths, expect_head, on_progress)
    if invocation.is_json:
        print_json(found.document())
    else:
        for history in found.histories:
            _print_history(history)
        for audit in found.audits:
            _print_audit(audit)
        if found.head_fault:
            note(f"fault: {found.head_fault}")
    if count := found.fault_count:
        raise DamageError(
            f"{count} fault{'s' if count > 1 else ''} found",
            hint="what the faults do not name is good",
        )


@journal.command("extract")
@click.argument("folder", metavar="DIR", type=path_type)
@click.option("--at", "at", metavar="POINT", required=True, help="As --at of view open.")
@click.option(
    "--to",
    "to",
    metavar="DIR",
    required=True,
    type=folder_type,
    help="Folder for the images; it is created.",
)
@click.option("--disk", "disks", metavar="DISK", multiple=True, help="Only this one; repeatable.")
@takes_json
def journal_extract(
    invocation: Invocation, folder: Path, at: str, to: Path, disks: tuple[str, ...]
) -> None:
    """Write POINT of the bare group directory DIR (history and replica) into new images.

    Needs no daemon, and refuses while a receiver runs on DIR (11).
    """
    from receiver.check.places import the_history
    from receiver.data_dir.keep_out import refuse_inside
    from receiver.offline.extract import extract
    from receiver.offline.lock import no_receiver
    from receiver.offline.reading import choose, read_index, remarks
    from receiver.points.pointspec import describe
    from replicator.base.clock import SystemClock
    from replicator.base.storage import SystemStorage
    from replicator.control.types import Progress

    storage = SystemStorage()
    place = the_history(storage, folder)
    refuse_inside(to, place.data_dir or place.directory, place.group_dir / "disks")
    with no_receiver(place.data_dir), progress_bar() as on_progress:
        index = read_index(storage, place)
        for remark in remarks(storage, place, index):
            note(remark)
        chosen = choose(index, at, SystemClock().utc_ns(), local_zone())
        point = chosen.point
        files = extract(
            storage,
            place,
            index,
            point,
            to.absolute(),
            only=disks,
            progress=lambda done, total: on_progress(
                Progress(done=done, total=total, what="extracting")
            ),
        )
    if invocation.is_json:
        print_json({"point": point.sequence, "files": [str(path) for path in files]})
        return
    note(f"{chosen.asked!r} is point {describe(chosen)}")
    if chosen.notice:
        note(chosen.notice)
    for path in files:
        click.echo(path)


@journal.command("rebuild-catalog")
@click.argument("data_dir", metavar="DATA_DIR", type=path_type)
@takes_json
def journal_rebuild_catalog(invocation: Invocation, data_dir: Path) -> None:
    """Make DATA_DIR/catalog.db anew from the histories alone; the old one is set aside.

    Needs no daemon, and refuses while a receiver runs on DATA_DIR (11).
    """
    from receiver.offline.rebuild import rebuild_catalog
    from replicator.base.storage import SystemStorage

    done = rebuild_catalog(SystemStorage(), data_dir.absolute())
    if invocation.is_json:
        print_json(
            {
                "catalog": str(done.catalog),
                "set_aside": None if done.set_aside is None else str(done.set_aside),
                "groups": done.points,
                "damaged": done.damaged,
            }
        )
    else:
        click.echo(
            f"{done.catalog}: " + ", ".join(f"{g} {n} points" for g, n in done.points.items())
        )
        if done.set_aside is not None:
            click.echo(f"{done.set_aside}: the catalog before")
    if done.damaged:
        for group, problem in done.damaged.items():
            note(f"fault: group {group}: {problem}")
        raise DamageError(
            f"{len(done.damaged)} of the histories could not be read to the beginning",
            hint="what could be read is in the catalog; replicator journal verify tells more",
        )


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _print_history(history: HistoryReport) -> None:
    click.echo(f"{history.directory}: history of group {history.group}")
    for segment in history.segments:
        _print_segment(segment)
    for fault in history.head_faults:
        note(f"fault: {fault}")
    points = f"{len(history.points)} points"
    if history.points:
        points += f", #{history.points[0]} to #{history.points[-1]}"
    click.echo(f"  {points}; sealed up to position {history.head_end}, head {history.head or '-'}")


def _print_segment(segment: SegmentReport) -> None:
    verdict = "BAD" if segment.faults else "good"
    state = "sealed" if segment.is_sealed else "not sealed"
    click.echo(
        f"  {segment.path.name}  {verdict}  {state}  {format_size(segment.size_bytes)}"
        f"  {segment.batches} batches, {segment.images} images, {len(segment.points)} points"
    )
    for text in segment.notes:
        click.echo(f"    {text}")
    for fault in segment.faults:
        note(f"fault: {fault}")


def _print_audit(audit: AuditReport) -> None:
    verdict = "BAD" if audit.breaks else "good"
    click.echo(f"{audit.directory}: audit, {verdict}, {audit.entries} entries")
    for each in audit.breaks:
        note(f"fault: {audit.directory}/{each}")
    click.echo(f"  head {audit.link.digest}")


COMMANDS = (journal,)
