# SPDX-License-Identifier: Apache-2.0
"""catalog.db comes from the histories alone."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from receiver.audit.chain import Link
from receiver.catalog import Catalog
from receiver.retention.keeping import segment_facts
from replicator.base.daemon import hold_lock
from replicator.cli.main import run
from tests.offline.copies import LONG, BareHistory

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def bare(tmp_path: Path) -> BareHistory:
    return BareHistory(tmp_path / "data" / "groups", LONG)


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def test_it_is_what_a_receiver_would_have_written(
    bare: BareHistory, tmp_path: Path, capsys: Captured
) -> None:
    data_dir = tmp_path / "data"
    assert run(["journal", "rebuild-catalog", str(data_dir), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    expected = bare.world.group.points.all
    assert document["groups"] == {"g": len(expected)}
    assert (document["set_aside"], document["damaged"]) == (None, {})
    catalog = data_dir / "catalog.db"
    found = rows(catalog, "SELECT sequence, time_ns, kind, label, lsn, ordinal FROM points")
    assert found == [
        (each.sequence, each.time_ns, each.kind, each.label, each.lsn, each.ordinal)
        for each in expected
    ]
    assert rows(catalog, "SELECT * FROM groups") == [("g", bare.world.group.known.generation)]
    facts = segment_facts(bare.world.group.history)
    assert rows(catalog, "SELECT first, end, digest FROM segments ORDER BY first") == [
        (fact.first, fact.end, fact.digest) for fact in facts
    ]
    assert sorted(path.name for path in data_dir.iterdir()) == ["catalog.db", "groups"]


def test_what_only_the_old_one_knew_is_taken_over(bare: BareHistory, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    newest = bare.world.group.points.all[-1]
    with closing(Catalog.open(data_dir / "catalog.db")) as old:
        old.group("g").rebuild([newest], [], 1)
        old.group("g").hold(newest.sequence, newest.until_ns + 5)
        old.keep_audit_link(Link(7, "ab"))
    assert run(["journal", "rebuild-catalog", str(data_dir)]) == 0
    with closing(Catalog.open(data_dir / "catalog.db")) as made:
        assert made.group("g").held(newest.sequence) == newest.until_ns + 5
        assert made.audit_link() == Link(7, "ab")
    assert (data_dir / "catalog.db.before-1").exists()


def test_one_that_is_no_database_is_set_aside(bare: BareHistory, tmp_path: Path) -> None:
    catalog = tmp_path / "data" / "catalog.db"
    catalog.write_bytes(b"rot" * 1000)
    assert run(["journal", "rebuild-catalog", str(tmp_path / "data")]) == 0
    assert len(rows(catalog, "SELECT * FROM points")) == len(bare.world.group.points.all)
    assert (tmp_path / "data/catalog.db.before-1").read_bytes() == b"rot" * 1000


def test_a_damaged_history_gives_what_it_can_and_is_named(
    bare: BareHistory, tmp_path: Path, capsys: Captured
) -> None:
    bare.segments[2].unlink()
    assert run(["journal", "rebuild-catalog", str(tmp_path / "data")]) == 13
    assert "fault: group g: " in capsys.readouterr().err
    left = rows(tmp_path / "data/catalog.db", "SELECT sequence FROM points")
    assert 0 < len(left) < len(bare.world.group.points.all)


@pytest.mark.usefixtures("bare")
def test_a_running_receiver_is_not_disturbed(tmp_path: Path) -> None:
    with hold_lock(tmp_path / "data" / "lock", "receiver dr"):
        assert run(["journal", "rebuild-catalog", str(tmp_path / "data")]) == 11
    assert not (tmp_path / "data" / "catalog.db").exists()


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    assert run(["journal", "rebuild-catalog", str(tmp_path)]) == 2
