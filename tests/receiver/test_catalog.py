# SPDX-License-Identifier: Apache-2.0
"""The catalog is an index: it can be lost, and says what the history says."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from receiver.audit.chain import Fact, Link
from receiver.catalog import Catalog, SegmentFact
from receiver.group.group import GroupReplica
from receiver.points.values import GroupEvent, Point, PointDisk
from replicator.base.clock import SystemClock
from replicator.base.storage import SystemStorage
from tests.doubles.memory_catalog import MemoryCatalog
from tests.receiver.machine import real_clock
from tests.receiver.source import Source


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with closing(Catalog.open(tmp_path / "catalog.db")) as opened:
        yield opened


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


POINT = Point(
    3,
    100,
    150,
    "crash",
    "label",
    9,
    1,
    members=(PointDisk(0, "a", "i", 5), PointDisk(1, "b", "j", 6)),
)


def test_points_and_holds(catalog: Catalog, tmp_path: Path) -> None:
    group = catalog.group("g")
    group.add_points([POINT, Point(4, 200, 200, "crash")])
    group.hold(4, 300)
    group.hold(4, 250)
    assert group.held(4) == 300
    assert group.held(9) == 0
    assert catalog.group("other").held(4) == 0
    group.drop_points([3])
    assert rows(tmp_path / "catalog.db", "SELECT sequence, until_ns, label FROM points") == [
        (4, 300, None)
    ]


def test_a_rebuild_replaces_what_is_known_of_the_group_alone(
    catalog: Catalog, tmp_path: Path
) -> None:
    catalog.group("other").add_points([POINT])
    group = catalog.group("g")
    group.add_points([Point(1, 1, 1, "crash", "old")])
    group.rebuild([POINT], [SegmentFact(0, 100, 292, b"d" * 32)], 7)
    found = rows(
        tmp_path / "catalog.db",
        "SELECT group_name, sequence, label, disks FROM points ORDER BY group_name",
    )
    assert found == [("g", 3, "label", "a b"), ("other", 3, "label", "a b")]
    assert rows(tmp_path / "catalog.db", "SELECT * FROM groups") == [("g", 7)]
    assert rows(tmp_path / "catalog.db", "SELECT first, end, bytes FROM segments") == [
        (0, 100, 292)
    ]


def test_a_rebuild_writes_what_differs_alone(catalog: Catalog, tmp_path: Path) -> None:
    group = catalog.group("g")
    points = [POINT, *(Point(n, n * 100, n * 100, "crash", f"l{n}") for n in range(4, 9))]
    group.rebuild(points, [], 1)
    path = tmp_path / "catalog.db"

    def told() -> list[tuple[object, ...]]:
        return rows(path, "SELECT sequence, until_ns, label FROM points ORDER BY sequence")

    expected = [(each.sequence, each.until_ns, each.label) for each in points]
    assert told() == expected
    with closing(sqlite3.connect(path)) as other:
        marks = "INSERT INTO marks SELECT NEW.sequence"
        other.execute("CREATE TABLE marks (sequence INTEGER)")
        other.execute(f"CREATE TRIGGER t AFTER INSERT ON points BEGIN {marks}; END")
        other.commit()
    group.rebuild(points, [], 1)
    assert rows(path, "SELECT * FROM marks") == []
    moved = [  # a label goes to another point, one point goes, one comes
        replace(points[0], label=None),
        *points[2:],
        Point(20, 2000, 2000, "crash", "label"),
    ]
    group.rebuild(moved, [], 1)
    assert rows(path, "SELECT * FROM marks ORDER BY sequence") == [(3,), (20,)]
    assert told() == [(each.sequence, each.until_ns, each.label) for each in moved]
    group.rebuild([], [], 1)
    assert told() == []


def test_the_end_of_the_audit_is_kept(catalog: Catalog) -> None:
    assert catalog.audit_link() is None
    catalog.keep_audit_link(Link(3, "ab"))
    catalog.keep_audit_link(Link(4, "cd"))
    assert catalog.audit_link() == Link(4, "cd")


def test_the_audit_of_version_1_is_there_to_be_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    Catalog.open(path).close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(
            "DROP TABLE audit_link; PRAGMA user_version = 1;"
            "CREATE TABLE audit (id INTEGER PRIMARY KEY, time_ns, order_name, object, argument,"
            " uid, pid, outcome, message);"
            "INSERT INTO audit VALUES (1, 5, 'rollback', 'g', '{}', 0, 7, 'owned', 'no');"
        )
    with closing(Catalog.open(path)) as catalog:
        message = "imported from the catalog: no"
        fact = Fact("rollback", "g", "{}", 0, 7, "owned", message)
        assert catalog.imported_audit() == [(5, fact)]
        catalog.forget_imported_audit()
        assert catalog.imported_audit() == []
        assert catalog.audit_link() is None


def test_threads_may_share_it(catalog: Catalog) -> None:
    group = catalog.group("g")

    def add(start: int) -> None:
        for number in range(start, start + 50):
            group.add_points([Point(number, number, number, "crash")])

    threads = [threading.Thread(target=add, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(group.held(number) == number for number in (49, 149, 249))


def test_what_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"this is no database, and long enough to be looked at as one" * 50)
    with closing(Catalog.open(path)) as catalog:
        catalog.group("g").add_points([POINT])
    assert (tmp_path / "catalog.db.unreadable-1").exists()
    with closing(Catalog.open(path)) as catalog:
        assert catalog.group("g").held(3) == 150


def test_a_group_fills_a_lost_catalog_again(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    source = Source([("d", 8192)])
    source.start_from_zero()
    for label in ("one", "two"):
        source.write("d", 0, label.encode() * 100)
        source.cut(label)
    for life in range(2):
        with closing(Catalog.open(path)) as catalog:
            group = GroupReplica(
                SystemStorage(),
                SystemClock(),
                tmp_path / "g",
                "g",
                catalog.group("g"),
                age_clock=real_clock(tmp_path),
            )
            group.recover()
            if life == 0:
                group.intake.open_stream(source.stream, 1, 0, source.first_chain)
                group.intake.accept(source.frame(source.records))
                group.intake.sync()
                while group.apply_next():
                    pass
            group.close()
        found = rows(path, "SELECT sequence, label FROM points ORDER BY sequence")
        assert found == [(1, "one"), (2, "two")]
        path.unlink()
    assert not path.exists()


class _Broken(MemoryCatalog):
    """A disk is full, or somebody locked the database."""

    def rebuild(self, *_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    add_points = rebuild  # type: ignore[assignment]


def test_a_catalog_that_fails_stops_nothing_and_is_told(tmp_path: Path) -> None:
    events: list[GroupEvent] = []
    group = GroupReplica(
        SystemStorage(),
        SystemClock(),
        tmp_path / "g",
        "g",
        _Broken(),
        age_clock=real_clock(tmp_path),
        notify=events.append,
    )
    group.recover()
    source = Source([("d", 8192)])
    source.start_from_zero()
    source.write("d", 0, b"x" * 512)
    source.cut()
    group.intake.open_stream(source.stream, 1, 0, source.first_chain)
    group.intake.accept(source.frame(source.records))
    assert len(group.intake.sync().points) == 1
    while group.apply_next():
        pass
    assert {event.name for event in events} == {"catalog.failed"}
    group.close()
