# SPDX-License-Identifier: Apache-2.0
"""catalog.db made anew from the histories alone, with no daemon.

The new one is written beside the old one and takes its place in one rename; the old one is kept
under another name. What the histories do not know is taken over from an old catalog that can be
read: how long the newest points have held, and where the audit's chain ended.

Failures. A history that is damaged gives the points that can still be made; it is named. A crash
leaves the old catalog, or the new one.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from receiver.catalog import Catalog
from receiver.check.places import find_histories
from receiver.data_dir.layout import catalog_path
from receiver.offline.lock import no_receiver
from receiver.offline.reading import read_index
from replicator.base.errors import DamageError, ReplicatorError, UsageError
from replicator.base.storage import Storage


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """`points` of each group; `damaged`: what could not be read, by group."""

    catalog: Path
    set_aside: Path | None
    points: dict[str, int]
    damaged: dict[str, str]


def rebuild_catalog(storage: Storage, data_dir: Path) -> Rebuilt:
    """Raises OwnedError where a receiver runs, NotFoundError, OSError, ReplicatorError."""
    if not storage.exists(data_dir / "groups"):
        raise UsageError(f"{data_dir}: is no data_dir of a receiver", hint="it has no `groups`")
    with no_receiver(data_dir):
        path = catalog_path(data_dir)
        fresh = path.with_name(path.name + ".new")
        _remove(storage, fresh)
        try:
            points, damaged = _fill(storage, data_dir, fresh, path)
        except sqlite3.Error as error:
            _remove(storage, fresh)
            raise ReplicatorError(f"{fresh}: the catalog cannot be written: {error}") from error
        aside = _set_aside(storage, path) if storage.exists(path) else None
        storage.replace(fresh, path)
        storage.sync_directory(data_dir)
        return Rebuilt(path, aside, points, damaged)


def _fill(
    storage: Storage, data_dir: Path, fresh: Path, path: Path
) -> tuple[dict[str, int], dict[str, str]]:
    points: dict[str, int] = {}
    damaged: dict[str, str] = {}
    with closing(Catalog.open(fresh)) as catalog:
        for place in find_histories(storage, data_dir):
            try:
                index = read_index(storage, place)
            except DamageError as error:
                damaged[place.group] = error.message
                continue
            if index.damage is not None:
                damaged[place.group] = index.damage.message
            kept = index.kept_points()
            generation = 0 if index.group is None else index.group.generation
            catalog.group(place.group).rebuild(kept, index.facts, generation)
            points[place.group] = len(kept)
        if storage.exists(path):
            _take_over(catalog, path)
        catalog.checkpoint()
    file = storage.open(fresh, writable=True)
    with closing(file):
        file.datasync()
    return points, damaged


def _take_over(catalog: Catalog, path: Path) -> None:
    """A catalog that cannot be read has nothing to say."""
    with (
        suppress(sqlite3.Error),
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as old,
    ):
        for group, sequence, until_ns in old.execute(
            "SELECT group_name, sequence, until_ns FROM points"
        ).fetchall():
            catalog.group(group).hold(sequence, until_ns)
        catalog.run(
            "INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?)",
            old.execute("SELECT group_name, generation, time_ns, reason FROM generations"),
        )
        catalog.run(
            "INSERT OR REPLACE INTO audit_link VALUES (?, ?, ?)",
            old.execute("SELECT one, sequence, digest FROM audit_link"),
        )


def _set_aside(storage: Storage, path: Path) -> Path:
    number = 1
    while storage.exists(aside := path.with_name(f"{path.name}.before-{number}")):
        number += 1
    for suffix in ("-wal", "-shm"):  # they belong to the old one, by its name
        side = path.with_name(path.name + suffix)
        if storage.exists(side):
            storage.replace(side, aside.with_name(aside.name + suffix))
    storage.replace(path, aside)
    return aside


def _remove(storage: Storage, fresh: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path = fresh.with_name(fresh.name + suffix)
        if storage.exists(path):
            storage.unlink(path)
