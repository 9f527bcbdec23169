# SPDX-License-Identifier: Apache-2.0
"""`clock accept`: what is asked, what is sent, what is said; and the clock in `status`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.test_commands import document, on_terminal, run
from tests.control.canned import STEPPED
from tests.control.services import Audited, CannedReceiver, served_in_thread

FORWARD = """\
the clock that points age by {} forward by 7 d 0 h, that of locks by 7 d 0 h
group web: 31 points are too old for keep by it
group db: 1 point is too old for keep by it
"""


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, CannedReceiver]]:
    path = tmp_path_factory.mktemp("c") / "r.sock"
    with served_in_thread(path, CannedReceiver, Audited()) as receiver:
        assert isinstance(receiver, CannedReceiver)
        yield str(path), receiver


def test_what_is_accepted_is_said(served: tuple[str, CannedReceiver]) -> None:
    socket, receiver = served
    done = run("--socket", socket, "clock", "accept", "--yes")
    assert (done.returncode, done.stdout) == (0, FORWARD.format("went"))
    found = document(run("--socket", socket, "clock", "accept", "--dry-run", "--json"))
    assert found["forward_seconds"] == 604_800
    assert found["clock"]["state"] == "stepped"
    assert receiver.orders == [("accept clock", ""), ("plan clock", "")]


def test_where_a_lock_ends_sooner_a_reason_is_asked_for(
    served: tuple[str, CannedReceiver],
) -> None:
    socket, receiver = served
    receiver.locks_need_reason = True
    refused = run("--socket", socket, "clock", "accept", "--yes")
    assert refused.returncode == 2
    assert "takes a reason" in refused.stderr
    planned = run("--socket", socket, "clock", "accept", "--dry-run")
    assert planned.stdout.endswith("it takes --reason TEXT: locks end sooner by it\n")
    given = ("clock", "accept", "--yes", "--reason", "the site was off")
    assert run("--socket", socket, *given).returncode == 0
    assert receiver.orders[-1] == ("accept clock", "the site was off")


def test_without_a_terminal_it_needs_yes(served: tuple[str, CannedReceiver]) -> None:
    socket, receiver = served
    done = run("--socket", socket, "clock", "accept")
    assert done.returncode == 2
    assert "give --yes" in done.stderr
    assert receiver.orders == []


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1)])
def test_a_person_sees_what_it_comes_to_and_is_asked(
    served: tuple[str, CannedReceiver], typed: str, code: int
) -> None:
    socket, receiver = served
    found, text = on_terminal(typed, "--socket", socket, "clock", "accept")
    assert found == code
    assert "31 points are too old" in text
    assert "Is the machine's time right?" in text
    assert (("accept clock", "") in receiver.orders) is (code == 0)


def test_status_says_why_the_clock_is_not_good(served: tuple[str, CannedReceiver]) -> None:
    socket, receiver = served
    receiver.clock = STEPPED
    shown = run("--socket", socket, "status").stdout
    assert "clock stepped: the machine's clock is 7 d ahead of what has passed" in shown
    assert (
        document(run("--socket", socket, "status", "--json"))["clock"]["behind_seconds"] == 604_800
    )


def test_monitoring_hears_of_it(served: tuple[str, CannedReceiver]) -> None:
    socket, receiver = served
    assert run("--socket", socket, "status", "--check").returncode == 0
    receiver.clock = STEPPED
    assert run("--socket", socket, "status", "--check").returncode == 1
