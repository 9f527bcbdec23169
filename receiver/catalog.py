# SPDX-License-Identifier: Apache-2.0
"""The catalog: an index for queries. SQLite in WAL mode.

It is never the only place of a fact, with two exceptions: up to when an idle group's newest point
has held (the history learns that with its next batch), and a copy of where the audit's chain ended
(so that one whose end was cut off shows). It is a witness besides: how far it has seen a group says
at the next start whether an older history was put back (`seen`). Everything else is written here
after the history has it, and is written anew from the history when a group is opened
(`rebuild`), so a lost or lagging catalog costs nothing. A database that cannot be read is set aside
under another name, and a new one begun.

Failures of SQLite never stop replication: `GroupCatalog` methods raise sqlite3.Error, and the
group, which calls them, reports it and goes on.

Concurrency: any thread; one connection under one lock.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from receiver.audit.chain import Fact, Link
from receiver.points.evidence import Reached
from receiver.points.values import Point

SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE groups (name TEXT PRIMARY KEY, generation INTEGER NOT NULL) STRICT;
CREATE TABLE points (
    group_name TEXT NOT NULL, sequence INTEGER NOT NULL, time_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL, kind TEXT NOT NULL, label TEXT, ordinal INTEGER NOT NULL,
    lsn INTEGER NOT NULL, consistent INTEGER NOT NULL, disks TEXT NOT NULL,
    PRIMARY KEY (group_name, sequence)) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX labels ON points (group_name, label) WHERE label IS NOT NULL;
CREATE INDEX times ON points (group_name, time_ns);
CREATE TABLE segments (
    group_name TEXT NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL, bytes INTEGER NOT NULL,
    digest BLOB NOT NULL, PRIMARY KEY (group_name, first)) STRICT, WITHOUT ROWID;
CREATE TABLE generations (
    group_name TEXT NOT NULL, generation INTEGER NOT NULL, time_ns INTEGER NOT NULL,
    reason TEXT NOT NULL, PRIMARY KEY (group_name, generation)) STRICT, WITHOUT ROWID;
"""
_SCHEMA_2 = """
CREATE TABLE audit_link (
    one INTEGER PRIMARY KEY CHECK (one = 1), sequence INTEGER NOT NULL,
    digest TEXT NOT NULL) STRICT;
"""
"""New in version 2, which has no table `audit` any more: one that is there is for the audit log to
take over (`imported_audit`)."""


@dataclass(frozen=True, slots=True)
class SegmentFact:
    """A sealed segment of the history."""

    first: int
    end: int
    size_bytes: int
    digest: bytes


class GroupCatalog(Protocol):
    """One group's part. Errors are sqlite3.Error."""

    def rebuild(
        self, points: Sequence[Point], segments: Sequence[SegmentFact], generation: int
    ) -> None:
        """Replaces all that is known of the group. How long points held is kept where longer."""
        ...

    def add_points(self, points: Sequence[Point]) -> None: ...

    def hold(self, sequence: int, until_ns: int) -> None: ...

    def held(self, sequence: int) -> int:
        """Up to when that point is known to have held; 0 if unknown."""
        ...

    def reached(self) -> Reached:
        """How far the group has come, as far as is known here."""
        ...

    def below(self, sequence: int) -> list[int]:
        """The points with a lower number, in order."""
        ...

    def drop_points(self, sequences: Iterable[int]) -> None: ...

    def set_segments(self, segments: Sequence[SegmentFact]) -> None: ...

    def set_generation(self, generation: int, time_ns: int, reason: str) -> None: ...


class Catalog:
    """The receiver's catalog.db."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> Catalog:
        """Opens or makes it. Raises sqlite3.Error, OSError."""
        try:
            return cls(_connect(path))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) or not path.exists():
                raise
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.replace(_free_name(path))
            return cls(_connect(path))

    def group(self, name: str) -> GroupCatalog:
        return _SqliteGroup(self, name)

    def forget(self, name: str) -> None:
        """All that it has of a group."""
        tables = ("points", "segments", "generations")
        statements: list[tuple[str, Iterable[tuple[object, ...]]]] = [
            (f"DELETE FROM {table} WHERE group_name = ?", [(name,)]) for table in tables
        ]
        self.run_all([*statements, ("DELETE FROM groups WHERE name = ?", [(name,)])])

    def keep_audit_link(self, link: Link) -> None:
        self.run(
            "INSERT OR REPLACE INTO audit_link VALUES (1, ?, ?)", [(link.sequence, link.digest)]
        )

    def audit_link(self) -> Link | None:
        """Where the audit's chain ended, as far as it was kept here."""
        rows = self.query("SELECT sequence, digest FROM audit_link", ())
        return Link(*rows[0]) if rows else None  # type: ignore[arg-type]

    def imported_audit(self) -> list[tuple[int, Fact]]:
        """(time_ns, order) of each entry that a catalog of version 1 held, oldest first."""
        if not self.query("SELECT 1 FROM sqlite_master WHERE name = 'audit'", ()):
            return []
        rows = self.query(
            "SELECT time_ns, order_name, object, argument, uid, pid, outcome,"
            " 'imported from the catalog: ' || message FROM audit ORDER BY id",
            (),
        )
        return [(time_ns, Fact(*fact)) for time_ns, *fact in rows]  # type: ignore[arg-type,misc]

    def forget_imported_audit(self) -> None:
        with self._lock, self._connection:
            self._connection.execute("DROP TABLE IF EXISTS audit")

    def run(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        """One transaction."""
        with self._lock, self._connection:
            self._connection.executemany(statement, rows)

    def run_all(self, statements: Sequence[tuple[str, Iterable[tuple[object, ...]]]]) -> None:
        """Several statements in one transaction."""
        with self._lock, self._connection:
            for statement, rows in statements:
                self._connection.executemany(statement, rows)

    def query(self, statement: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def checkpoint(self) -> None:
        """Everything is in the one file."""
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(
                f"BEGIN; {_SCHEMA} {_SCHEMA_2} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version == 1:
            connection.executescript(
                f"BEGIN; {_SCHEMA_2} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema {version}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _free_name(path: Path) -> Path:
    number = 1
    while (free := path.with_name(f"{path.name}.unreadable-{number}")).exists():
        number += 1
    return free


_ADD_POINT = "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_DROP_POINT = "DELETE FROM points WHERE group_name = ? AND sequence = ?"
_ADD_SEGMENT = "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?)"


class _SqliteGroup:
    """GroupCatalog in SQLite."""

    def __init__(self, catalog: Catalog, name: str) -> None:
        self._catalog = catalog
        self._name = name

    def rebuild(
        self, points: Sequence[Point], segments: Sequence[SegmentFact], generation: int
    ) -> None:
        """Writes only what differs: mostly that is nothing."""
        name = self._name
        rows = self._catalog.query("SELECT * FROM points WHERE group_name = ?", (name,))
        there = {row[1]: row for row in rows}
        wanted = {point.sequence: self._row(point) for point in points}
        self._catalog.run_all(
            [
                (_DROP_POINT, [(name, each) for each in there.keys() - wanted.keys()]),
                ("DELETE FROM segments WHERE group_name = ?", [(name,)]),
                ("INSERT OR REPLACE INTO groups VALUES (?, ?)", [(name, generation)]),
                (_ADD_POINT, [row for each, row in wanted.items() if there.get(each) != row]),
                (_ADD_SEGMENT, [self._segment_row(each) for each in segments]),
            ]
        )

    def add_points(self, points: Sequence[Point]) -> None:
        self._catalog.run(_ADD_POINT, [self._row(point) for point in points])

    def hold(self, sequence: int, until_ns: int) -> None:
        self._catalog.run(
            "UPDATE points SET until_ns = max(until_ns, ?) WHERE group_name = ? AND sequence = ?",
            [(until_ns, self._name, sequence)],
        )

    def held(self, sequence: int) -> int:
        rows = self._catalog.query(
            "SELECT until_ns FROM points WHERE group_name = ? AND sequence = ?",
            (self._name, sequence),
        )
        value = rows[0][0] if rows else 0
        return value if isinstance(value, int) else 0

    def reached(self) -> Reached:
        found = [
            self._catalog.query(statement, (self._name,))
            for statement in (
                "SELECT max(sequence) FROM points WHERE group_name = ?",
                "SELECT max(generation) FROM groups WHERE name = ?",
            )
        ]
        point, generation = (rows[0][0] if rows else 0 for rows in found)
        return Reached(
            point if isinstance(point, int) else 0,
            generation if isinstance(generation, int) else 0,
        )

    def below(self, sequence: int) -> list[int]:
        rows = self._catalog.query(
            "SELECT sequence FROM points WHERE group_name = ? AND sequence < ? ORDER BY sequence",
            (self._name, sequence),
        )
        return [each for (each,) in rows if isinstance(each, int)]

    def drop_points(self, sequences: Iterable[int]) -> None:
        self._catalog.run(_DROP_POINT, [(self._name, sequence) for sequence in sequences])

    def set_segments(self, segments: Sequence[SegmentFact]) -> None:
        self._catalog.run_all(
            [
                ("DELETE FROM segments WHERE group_name = ?", [(self._name,)]),
                (_ADD_SEGMENT, [self._segment_row(each) for each in segments]),
            ]
        )

    def set_generation(self, generation: int, time_ns: int, reason: str) -> None:
        self._catalog.run_all(
            [
                ("INSERT OR REPLACE INTO groups VALUES (?, ?)", [(self._name, generation)]),
                (
                    "INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?)",
                    [(self._name, generation, time_ns, reason)],
                ),
            ]
        )

    def _row(self, point: Point) -> tuple[object, ...]:
        return (
            self._name,
            point.sequence,
            point.time_ns,
            point.until_ns,
            point.kind,
            point.label,
            point.ordinal,
            point.lsn,
            int(point.consistent),
            " ".join(disk.name for disk in point.members),
        )

    def _segment_row(self, segment: SegmentFact) -> tuple[object, ...]:
        return self._name, segment.first, segment.end, segment.size_bytes, segment.digest
