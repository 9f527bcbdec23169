# SPDX-License-Identifier: Apache-2.0
"""`points drop` and `history unlock`: what is asked, what is sent, what is said."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.test_commands import POINT_1, document, on_terminal, run
from tests.control.services import Audited, CannedReceiver, served_in_thread


class Site:
    def __init__(self, socket: str, orders: list[tuple[str, ...]]) -> None:
        self.socket = ("--socket", socket)
        self.orders = orders


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    path = tmp_path_factory.mktemp("h") / "r.sock"
    with served_in_thread(path, CannedReceiver, Audited()) as receiver:
        yield Site(str(path), receiver.orders)


def test_points_lists_with_or_without_the_word(site: Site) -> None:
    listed = document(run(*site.socket, "points", "list", "web", "--json"))
    assert listed == document(run(*site.socket, "points", "web", "--json"))
    assert site.orders == [("points", "web", "None", "None")] * 2


def test_what_is_dropped_is_said(site: Site) -> None:
    order = ("points", "drop", "web", "#1", "mine", "--older-than", "3d", "--yes")
    assert document(run(*site.socket, *order, "--json")) == {
        "points": [POINT_1],
        "dry_run": False,
        "freed_bytes": 9 << 20,
        "to_come_bytes": 2 << 20,
    }
    assert site.orders == [("drop", "web", "#1", "mine", "3d", "")]
    done = run(*site.socket, "points", "drop", "web", "#1", "--dry-run")
    assert done.stdout == (
        "group web: 1 point would be given up\n  point #1 of 2026-03-01T02:00:00.000000Z (crash)\n"
    )
    assert site.orders[-1] == ("plan drop", "web", "#1", "None", "")


def test_what_is_free_by_a_drop_and_what_is_to_come_is_said(site: Site) -> None:
    done = run(*site.socket, "points", "drop", "web", "#1", "--yes")
    assert done.stdout.splitlines()[-1] == "9 MiB are free by it, about 2 MiB to come"


def test_a_point_that_must_stay_is_exit_code_11(site: Site) -> None:
    done = run(*site.socket, "points", "drop", "web", "latest", "--yes")
    assert (done.returncode, done.stdout) == (11, "")
    assert "it is the newest one" in done.stderr


def test_without_a_terminal_a_drop_needs_yes(site: Site) -> None:
    done = run(*site.socket, "points", "drop", "web", "#1")
    assert done.returncode == 2
    assert "give --yes" in done.stderr
    assert site.orders == []


def test_a_person_agrees_to_the_points_that_were_shown(site: Site) -> None:
    code, text = on_terminal("y\n", *site.socket, "points", "drop", "web", "--older-than", "3d")
    assert code == 0
    assert "1 point would be given up" in text
    assert site.orders == [("plan drop", "web", "3d", ""), ("drop", "web", "#1", "None", "")]


def test_a_person_who_declines_has_given_up_nothing(site: Site) -> None:
    code, text = on_terminal("n\n", *site.socket, "points", "drop", "web", "#1")
    assert code == 1
    assert "nothing was done" in text
    assert [order[0] for order in site.orders] == ["plan drop"]


@pytest.mark.parametrize(("typed", "code"), [("web\n", 0), ("y\n", 1), ("wbe\n", 1)])
def test_who_breaks_a_lock_types_the_name_of_the_group(site: Site, typed: str, code: int) -> None:
    breaking = ("--break-lock", "--reason", "court order")
    found, _ = on_terminal(typed, *site.socket, "points", "drop", "web", "#1", "--yes", *breaking)
    assert found == code
    assert (("drop", "web", "#1", "None", "court order") in site.orders) is (code == 0)
    found, _ = on_terminal(typed, *site.socket, "history", "unlock", "web", *breaking)
    assert found == code
    assert (("unlock", "web", "court order") in site.orders) is (code == 0)


def test_an_unlock_in_a_script_says_what_it_did(site: Site) -> None:
    order = ("history", "unlock", "web", "--break-lock", "--reason", "moved")
    assert run(*site.socket, *order).stdout == (
        "group web: points are locked for 1 h 0 min; it was 7 d 0 h\n"
    )
    assert document(run(*site.socket, *order, "--json")) == {
        "group": "web",
        "lock_seconds_before": 604800.0,
        "lock_seconds": 3600.0,
    }


@pytest.mark.parametrize(
    "missing", [(), ("--break-lock",), ("--reason", "x"), ("--break-lock", "--reason", " ")]
)
def test_an_unlock_needs_both_words(site: Site, missing: tuple[str, ...]) -> None:
    done = run(*site.socket, "history", "unlock", "web", *missing)
    assert (done.returncode, site.orders) == (2, [])
    assert "--break-lock and --reason TEXT" in done.stderr


@pytest.mark.parametrize(("typed", "code"), [("web\n", 0), ("y\n", 1)])
def test_who_accepts_a_loss_types_the_name_of_the_group(site: Site, typed: str, code: int) -> None:
    order = ("history", "accept", "web", "--reason", "the disk is gone")
    found, text = on_terminal(typed, *site.socket, *order)
    assert found == code
    assert (("accept", "web", "the disk is gone") in site.orders) is (code == 0)
    assert ("12 points can be had, 3 cannot; the next one is #42" in text) is (code == 0)


def test_an_acceptance_in_a_script_needs_yes_and_a_reason(site: Site) -> None:
    order = ("history", "accept", "web")
    assert run(*site.socket, *order, "--yes").returncode == 2
    assert run(*site.socket, *order, "--reason", "x").returncode == 2
    assert site.orders == []
    assert document(run(*site.socket, *order, "--reason", "x", "--yes", "--json")) == {
        "group": "web",
        "gone": "a history",
        "points": 12,
        "damaged_points": 3,
        "next_point": 42,
        "generation": 2,
    }
