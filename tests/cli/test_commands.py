# SPDX-License-Identifier: Apache-2.0
"""The real command as a process, against canned daemons on real sockets."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.control.services import Audited, CannedAgent, CannedReceiver, served_in_thread

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

POINT_1 = {
    "sequence": 1,
    "time": "2026-03-01T02:00:00.000000Z",
    "until": "2026-03-01T02:00:09.000000Z",
    "kind": "crash",
    "label": None,
    "damaged": False,
    "damage": "",
    "unverified": False,
    "made": None,
    "clock_step_seconds": None,
}
POINT_2 = {
    "sequence": 2,
    "time": "2026-03-01T02:00:10.000001Z",
    "until": "2026-03-01T02:00:10.000001Z",
    "kind": "application",
    "label": "before upgrade",
    "damaged": False,
    "damage": "",
    "unverified": False,
    "made": None,
    "clock_step_seconds": None,
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "replicator.cli.main", *arguments]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command without a terminal, in the repository's folder."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Both daemons, and what they were ordered to do."""
    folder = tmp_path_factory.mktemp("s")
    with (
        served_in_thread(folder / "agent.sock", CannedAgent, Audited()) as agent,
        served_in_thread(folder / "receiver.sock", CannedReceiver, Audited()) as receiver,
    ):
        yield {
            "agent": str(folder / "agent.sock"),
            "receiver": str(folder / "receiver.sock"),
            "agent_orders": agent.orders,
            "receiver_orders": receiver.orders,
        }


@pytest.fixture
def at_agent(sockets: dict[str, Any]) -> Run:
    return lambda *arguments: run("--socket", sockets["agent"], *arguments)


@pytest.fixture
def at_receiver(sockets: dict[str, Any]) -> Run:
    return lambda *arguments: run("--socket", sockets["receiver"], *arguments)


def document(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON document on stdout of a command that went well."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# -- JSON: the contract ---------------------------------------------------------------------------


def test_points(at_receiver: Run) -> None:
    assert document(at_receiver("points", "web", "--json")) == [POINT_1, POINT_2]


def test_no_points_is_an_empty_list(at_receiver: Run) -> None:
    assert document(at_receiver("points", "web", "--since", "1s ago", "--json")) == []


def test_times_go_to_the_receiver_as_they_were_typed(
    at_receiver: Run, sockets: dict[str, Any]
) -> None:
    document(at_receiver("points", "web", "--since", "10m ago", "--until", "x&y=z", "--json"))
    assert sockets["receiver_orders"][-1] == ("points", "web", "10m ago", "x&y=z")


def test_status(at_receiver: Run) -> None:
    status = document(at_receiver("status", "--json"))
    assert (status["role"], status["name"]) == ("receiver", "dr1")
    (group,) = status["groups"]
    assert {key: group[key] for key in ("name", "state", "rpo_seconds", "points")} == {
        "name": "web",
        "state": "protected",
        "rpo_seconds": 0.75,
        "points": 2,
    }
    assert (group["durable_lsn"], group["applied_lsn"]) == (8192, 4096)
    assert group["newest_point"] == POINT_2
    (disk,) = group["disks"]
    assert (disk["name"], disk["size"]) == ("web-vda", 1 << 30)


def test_mark_that_waits(at_agent: Run, sockets: dict[str, Any]) -> None:
    point = document(at_agent("mark", "web", "--label", "x y", "--wait", "--json"))
    assert point == POINT_2 | {"frozen_seconds": None, "notice": None}
    assert sockets["agent_orders"][-1] == ("mark", "web", "x y", "True")


def test_mark_that_quiesces_says_for_how_long(at_agent: Run, sockets: dict[str, Any]) -> None:
    done = at_agent("mark", "web", "--quiesce", "--expire", "30d", "--wait")
    assert done.returncode == 0
    assert sockets["agent_orders"][-1] == ("mark", "web", "", "True", "True", str(30 * 86_400))
    assert done.stderr == "the moon was full\nthe guests were frozen for 12.5 ms\n"
    assert "is durable at the receiver" in done.stdout


def test_mark_that_does_not_wait_has_no_number_yet(at_agent: Run) -> None:
    point = document(at_agent("mark", "web", "--label", "x", "--json"))
    assert (point["sequence"], point["label"], point["kind"]) == (None, "x", "crash")


def test_resync(at_agent: Run) -> None:
    assert document(at_agent("resync", "web", "--json"))["state"] == "protected"


def test_view_open_and_list_and_close(at_receiver: Run) -> None:
    opened = document(at_receiver("view", "open", "web", "--at", "latest", "--json"))
    assert opened["id"] == "v1"
    assert opened["point"] == POINT_1
    assert opened["disks"] == {"web-vda": "nbd+unix:///web-vda?socket=/s"}
    assert document(at_receiver("view", "list", "--json")) == [opened]
    assert document(at_receiver("view", "close", "v1", "--json")) == {"id": "v1"}


def test_what_is_unverified_says_so(at_receiver: Run, tmp_path: Path) -> None:
    order = ("--at", "latest", "--unverified")
    said = at_receiver("view", "open", "web", *order)
    assert (said.returncode, "UNVERIFIED" in said.stdout) == (0, True)
    said = at_receiver("restore", "web", "--to", str(tmp_path / "new"), *order)
    assert (said.returncode, "UNVERIFIED" in said.stdout) == (0, True)
    assert document(at_receiver("view", "open", "web", *order, "--json"))["point"]["unverified"]


def test_rollback(at_receiver: Run) -> None:
    point = document(at_receiver("rollback", "web", "--to", "latest", "--yes", "--json"))
    assert (point["sequence"], point["kind"]) == (4, "rollback")
    assert (point["before"]["sequence"], point["before"]["kind"]) == (3, "before-rollback")


def test_a_dry_run_of_a_rollback_does_nothing(at_receiver: Run, sockets: dict[str, Any]) -> None:
    before = list(sockets["receiver_orders"])
    plan = document(at_receiver("rollback", "web", "--to", "latest", "--dry-run", "--json"))
    assert (plan["sequence"], plan["dry_run"], plan["changed_bytes"]) == (2, True, 3 << 20)
    assert sockets["receiver_orders"] == before


def test_restore(at_receiver: Run, tmp_path: Path) -> None:
    folder = str(tmp_path / "new")
    order = ("restore", "web", "--at", "#2", "--to", folder, "--json")
    restored = document(at_receiver(*order))
    image = {
        "disk": "web-vda",
        "path": f"{folder}/web-vda.raw",
        "format": "raw",
        "size": 1 << 30,
        "checksum": "0f" * 16,
        "verified": True,
    }
    assert restored == {
        "point": POINT_2,
        "files": [f"{folder}/web-vda.raw", f"{folder}/web.xml"],
        "images": [image],
    }
    for option in ("--no-verify", "--resume"):
        (said,) = document(at_receiver(*order, option))["images"]
        assert said == {**image, "verified": False}
    (said,) = document(at_receiver(*order, "--format", "qcow2"))["images"]
    assert said == {**image, "format": "qcow2"}


def test_a_relative_restore_folder_is_the_clients(at_receiver: Run) -> None:
    restored = document(at_receiver("restore", "web", "--at", "#2", "--to", "out", "--json"))
    assert restored["files"] == [str(ROOT / "out/web-vda.raw"), str(ROOT / "out/web.xml")]


def test_a_scrub_that_leaves_something_bad_ends_with_13(
    at_receiver: Run, sockets: dict[str, Any]
) -> None:
    done = at_receiver("scrub", "web", "--rate", "100MiB", "--json")
    assert done.returncode == 13
    found = json.loads(done.stdout)
    assert [bad["healed"] for bad in found["bad"]] == [False, True]
    assert "1 bad place could not be healed" in done.stderr
    assert "replicator resync web" in done.stderr
    assert sockets["receiver_orders"][-1] == ("scrub", "web", "True", str(100 << 20))


def test_a_drop_of_nothing_is_refused_before_anything_is_asked(at_receiver: Run) -> None:
    done = at_receiver("points", "drop", "web")
    assert done.returncode == 2
    assert "says neither which points nor how old" in done.stderr


def test_a_scrub_in_the_background_and_its_status(
    at_receiver: Run, sockets: dict[str, Any]
) -> None:
    assert at_receiver("scrub", "web", "--background").returncode == 13
    assert sockets["receiver_orders"][-1] == ("scrub", "web", "False", "None")
    shown = at_receiver("scrub", "web", "--status")
    assert shown.returncode == 0, shown.stderr
    assert "web was scrubbed until 2026" in shown.stdout
    assert "/disks/web-vda.raw" in shown.stdout


@pytest.mark.parametrize("rate", ["fast", "0", "-1MiB"])
def test_a_scrubs_rate_is_a_size(at_receiver: Run, rate: str) -> None:
    assert at_receiver("scrub", "web", "--rate", rate).returncode == 2


def test_json_may_stand_before_the_command(at_receiver: Run) -> None:
    assert document(at_receiver("--json", "points", "web")) == [POINT_1, POINT_2]
    assert document(at_receiver("--json", "view", "list"))[0]["id"] == "v1"


def test_the_socket_may_come_from_the_environment(sockets: dict[str, Any]) -> None:
    done = run("status", "--json", REPLICATOR_SOCKET=sockets["agent"])
    assert document(done)["role"] == "agent"


# -- for people -----------------------------------------------------------------------------------


def test_what_was_chosen_stands_beside_the_document(at_receiver: Run) -> None:
    done = at_receiver("view", "open", "web", "--at", "10m ago", "--json")
    assert done.stderr == (
        "'10m ago' is point #1 of 2026-03-01T02:00:00.000000Z (crash), 3.2 s before that\n"
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            "latest",
            "'latest' is point #2 of 2026-03-01T02:00:10.000001Z (application, 'before upgrade')",
        ),
        (
            "2026-03-01T02:00:05Z",
            (
                "'2026-03-01T02:00:05Z' is point #1 of 2026-03-01T02:00:00.000000Z (crash), which "
                "stands for exactly that time"
            ),
        ),
    ],
)
def test_a_person_reads_it_on_stdout(at_receiver: Run, asked: str, said: str) -> None:
    done = at_receiver("restore", "web", "--at", asked, "--to", "/r")
    assert done.stdout.splitlines() == [said, "/r/web-vda.raw", "/r/web.xml"]
    assert done.stderr == ""


def test_columns_are_plain_off_a_terminal(at_receiver: Run) -> None:
    assert at_receiver("points", "web").stdout == (
        "POINT  TIME                         UNTIL                        KIND         LABEL\n"
        "#1     2026-03-01T02:00:00.000000Z  2026-03-01T02:00:09.000000Z  crash        -\n"
        "#2     2026-03-01T02:00:10.000001Z  2026-03-01T02:00:10.000001Z  application"
        "  before upgrade\n"
    )


def test_status_for_people(at_receiver: Run) -> None:
    heading, headers, row = at_receiver("status").stdout.splitlines()
    assert heading == "receiver dr1"
    assert headers.split() == [
        "GROUP",
        "STATE",
        "RPO",
        "DURABLE",
        "APPLIED",
        "LAG",
        "POINTS",
        "NEWEST",
        "DISKS",
    ]
    assert row.startswith("web    protected  750 ms  8192     4096     -    2       #2 ")
    assert row.endswith(" ago  web-vda 1 GiB")


def test_a_rollback_says_how_to_undo_it(at_receiver: Run) -> None:
    done = at_receiver("rollback", "web", "--to", "latest", "--yes")
    assert done.stdout.splitlines()[-1] == "undo with: replicator rollback web --to '#3'"


def test_an_empty_list_is_a_sentence_beside_the_data(at_receiver: Run) -> None:
    done = at_receiver("points", "web", "--since", "1s ago")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "group web has no points in that range\n"


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("points", "nope"), 10, "error: no group 'nope'\nhint: status lists the groups\n"),
        (("points", "../x"), 10, "error: no group '../x'\n"),
        (("view", "close", "v9"), 10, "error: no view 'v9'\n"),
        (
            ("rollback", "web", "--to", "connected", "--yes"),
            11,
            "error: agent kvm1 feeds group web\nhint: stop it first\n",
        ),
        (("view", "open", "web", "--at", "#9"), 14, "error: no point '#9' in group web\n"),
        (
            ("restore", "web", "--at", "never", "--to", "/r"),
            14,
            "error: no point 'never' in group web\n",
        ),
        (
            ("resync", "web"),
            2,
            (
                "error: resync is served by the agent; this is the receiver dr1\n"
                "hint: name the agent's control socket with --socket\n"
            ),
        ),
        (
            ("mark", "web", "--label", "x"),
            2,
            (
                "error: mark is served by the agent; this is the receiver dr1\n"
                "hint: name the agent's control socket with --socket\n"
            ),
        ),
        (
            ("rollback", "web", "--to", "latest"),
            2,
            (
                "error: a rollback asks for confirmation, and there is no terminal to ask at\n"
                "hint: give --yes, or --dry-run to see what it would do\n"
            ),
        ),
    ],
)
def test_a_refusal_is_a_sentence_and_its_code(
    at_receiver: Run, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = at_receiver(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", sentence)


@pytest.mark.parametrize(
    ("arguments", "order"),
    [
        (("points", "web"), "points"),
        (("view", "list"), "views"),
        (("view", "open", "web", "--at", "latest"), "view open"),
        (("view", "close", "v1"), "view close"),
        (("rollback", "web", "--to", "latest", "--yes"), "rollback"),
        (("restore", "web", "--at", "latest", "--to", "/r"), "restore"),
    ],
)
def test_the_receivers_orders_are_refused_by_the_agent(
    at_agent: Run, arguments: tuple[str, ...], order: str
) -> None:
    done = at_agent(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: {order} is served by the receiver; this is the agent kvm1\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("frobnicate",), "error: No such command 'frobnicate'\nhint: see replicator --help\n"),
        (("points",), "error: Missing argument 'GROUP'\nhint: see replicator points list --help\n"),
        (
            ("view", "open", "web"),
            "error: Missing option '--at'\nhint: see replicator view open --help\n",
        ),
        (
            ("restore", "web", "--at", "latest", "--to", ""),
            (
                "error: Invalid value for '--to': an empty text names no path\n"
                "hint: see replicator restore --help\n"
            ),
        ),
        (
            ("journal", "extract", ".", "--at", "latest", "--to", ""),
            (
                "error: Invalid value for '--to': an empty text names no path\n"
                "hint: see replicator journal extract --help\n"
            ),
        ),
        (
            ("mark", "web", "--label", "latest"),
            (
                "error: 'latest' cannot be a label: as a POINT it is read as something else\n"
                "hint: 'latest', '#…', 'label:…' and what looks like a time already name points;"
                " choose another word\n"
            ),
        ),
        (
            ("mark", "web"),
            "error: a mark has a label, or quiesces, or both\nhint: give --label TEXT\n",
        ),
        (
            ("mark", "web", "--label", "x", "--expire", "soon"),
            (
                "error: --expire: 'soon' is not a duration; "
                "write for example 250ms, 1s, 15min or 24h\n"
            ),
        ),
        (
            ("mark", "web", "--label", "x", "--expire", "5ms"),
            "error: --expire: '5ms' is not between 1s and 100 years\n",
        ),
    ],
)
def test_misuse_ends_with_2(arguments: tuple[str, ...], sentence: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_a_socket_that_cannot_be_one_is_a_sentence() -> None:
    done = run("--socket", "/etc/passwd/x", "status")
    assert (done.returncode, done.stderr) == (2, "error: /etc/passwd/x: Not a directory\n")


def test_a_reader_that_has_seen_enough_is_no_error(at_receiver: Run, sockets: Any) -> None:
    with subprocess.Popen(
        command("--socket", sockets["receiver"], "points", "web"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


# -- on a terminal --------------------------------------------------------------------------------


def on_terminal(answer: str, *arguments: str) -> tuple[int, str]:
    """Runs the command with a terminal for stdin and stderr, types `answer`."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        stdin=follower,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(follower)
        os.write(leader, answer.encode())
        out, err = process.communicate(timeout=60)
    os.close(leader)
    return process.returncode, out + err


def test_a_person_confirms_exactly_the_point_that_was_shown(sockets: dict[str, Any]) -> None:
    arguments = ("--socket", sockets["receiver"], "rollback", "web", "--to", "latest")
    code, text = on_terminal("y\n", *arguments)
    assert code == 0
    assert "'latest' is point #2" in text
    assert "changes 3 MiB (768 blocks, about" in text
    assert "newer points (1) stay reachable; kvm1 (10.0.0.1) feeds it: that takes --force-d" in text
    assert sockets["receiver_orders"][-1] == ("rollback", "web", "#2")


def test_a_person_who_declines_has_done_nothing(sockets: dict[str, Any]) -> None:
    before = list(sockets["receiver_orders"])
    arguments = ("--socket", sockets["receiver"], "rollback", "web", "--to", "latest")
    code, text = on_terminal("n\n", *arguments)
    assert (code, sockets["receiver_orders"]) == (1, before)
    assert "nothing was done" in text


def shown_on_terminal(stream: str, *arguments: str) -> tuple[int, str]:
    """Exit code, and what came to a terminal in the place of `stream` (stdout or stderr)."""
    leader, follower = pty.openpty()
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: follower}
    with subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=streams["stdout"],
        stderr=streams["stderr"],
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"},
    ) as process:
        os.close(follower)
        text = b""
        while chunk := read_terminal(leader):
            text += chunk
    os.close(leader)
    return process.returncode, text.decode()


def test_a_person_sees_the_newest_points_and_how_many_more_there_are(
    sockets: dict[str, Any],
) -> None:
    at = ("--socket", sockets["receiver"], "points", "web")
    code, text = shown_on_terminal("stdout", *at)
    assert code == 0
    assert sockets["receiver_orders"][-1] == ("point page", "web", "None", "None", "50", "None")
    assert "#1 " in text
    for more in (("--all",), ("--since", "10m ago"), ("--json",)):
        shown_on_terminal("stdout", *at, *more)
        assert sockets["receiver_orders"][-1][0] == "points", more


def test_the_last_points(at_receiver: Run, sockets: dict[str, Any]) -> None:
    done = at_receiver("points", "web", "--last", "1")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["POINT", "#2"]
    assert done.stderr == "1 earlier point is not shown; --last N shows more, --all shows all\n"
    assert document(at_receiver("points", "web", "--last", "1", "--json")) == [POINT_2]
    assert document(at_receiver("points", "web", "--last", "9", "--json")) == [POINT_1, POINT_2]
    ranged = ("points", "web", "--last", "3", "--since", "10m ago", "--until", "5m ago", "--json")
    assert document(at_receiver(*ranged)) == [POINT_1, POINT_2]
    order = ("point page", "web", "10m ago", "5m ago", "3", "None")
    assert sockets["receiver_orders"][-1] == order
    assert (
        document(at_receiver("points", "web", "--last", "2", "--since", "1s ago", "--json")) == []
    )
    for wrong in (
        ("--last", "0"),
        ("--last", "2", "--all"),
        ("--last", "2", "--writes", "#1"),
        ("--all", "--writes", "#1"),
    ):
        assert at_receiver("points", "web", *wrong).returncode == 2


def test_tables_on_a_terminal_heed_no_color(sockets: dict[str, Any]) -> None:
    code, text = shown_on_terminal("stdout", "--socket", sockets["receiver"], "points", "web")
    assert code == 0
    assert "before upgrade" in text
    assert "\x1b[3" not in text


def test_a_long_order_shows_progress_on_a_terminal(sockets: dict[str, Any]) -> None:
    arguments = ("--socket", sockets["receiver"], "rollback", "web", "--to", "latest", "--yes")
    code, text = shown_on_terminal("stderr", *arguments)
    assert code == 0
    assert "0:00:0" in text, "time under way"


def read_terminal(leader: int) -> bytes:
    """Empty at the end: Linux answers EIO when the other side of a pty is closed."""
    try:
        return os.read(leader, 65536)
    except OSError:
        return b""


# -- time -----------------------------------------------------------------------------------------


def test_help_does_not_load_what_takes_long() -> None:
    code = (
        "import sys; from replicator.cli.main import run; code = run(['--help']);"
        "print(*sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"rich", "msgspec", "aiohttp", "http", "asyncio", "cryptography", "uvloop", "numpy"}
    assert not heavy & set(done.stderr.split())
    for name in ("mark", "points", "rollback", "pki", "journal", "demo"):
        assert f"  {name} " in done.stdout


def test_single_writes_are_listed(at_receiver: Run) -> None:
    table = at_receiver("points", "web", "--writes", "#1")
    assert table.stdout.splitlines()[1].split() == [
        "#1+17w", "2026-03-01T02:00:00.000000Z", "web-vda", "4096", "512", "write",
    ]  # fmt: skip
    wanted = ("points", "web", "--writes", "14:00", "--window", "10s", "--limit", "7", "--json")
    (found,) = document(at_receiver(*wanted))
    assert found["point"] == "#1+17w"
    none = at_receiver("points", "web", "--writes", "1s ago")
    assert (none.returncode, none.stdout) == (0, "")
    for wrong in (("--writes", "#1", "--since", "1h ago"), ("--limit", "7"), ("--window", "1s")):
        assert at_receiver("points", "web", *wrong).returncode == 2
    assert at_receiver("points", "web", "--writes", "#1", "--window", "soon").returncode == 2


def test_the_zone_of_the_terminal_goes_along(sockets: dict[str, Any]) -> None:
    for stated, sent in (("Europe/Berlin", "Europe/Berlin"), (":UTC", "UTC"), ("EST5", "-05:00")):
        wanted = ("--socket", sockets["receiver"], "points", "web", "--writes", "14:00")
        assert run(*wanted, TZ=stated).returncode == 0
        order = ("writes", "web", "14:00", "2000000000", "200", sent)
        assert sockets["receiver_orders"][-1] == order


def test_a_source_is_cut_off_only_when_that_is_said(at_receiver: Run) -> None:
    wanted = ("rollback", "web", "--to", "connected", "--yes")
    assert at_receiver(*wanted).returncode == 11
    done = at_receiver(*wanted, "--force-detach")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "undo with: replicator rollback web --to '#3'"


def closed(which: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `run`, with a stream that the shell has closed."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {which}', "sh", *command(*arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_closed_stream_is_no_traceback(sockets: dict[str, Any]) -> None:
    at_receiver = ("--socket", sockets["receiver"])
    before = len(sockets["receiver_orders"])
    for order in (("points", "web"), ("rollback", "web", "--to", "#1", "--yes")):
        done = closed(">&-", *at_receiver, *order)
        assert done.returncode == 2
        assert done.stderr.startswith("error: stdout is closed: nothing was done")
    assert len(sockets["receiver_orders"]) == before
    asking = closed("<&-", *at_receiver, "rollback", "web", "--to", "#1")
    assert asking.returncode == 2
    assert "there is no terminal to ask at" in asking.stderr
    silent = closed("2>&-", *at_receiver, "points", "web")
    assert (silent.returncode, silent.stdout.split()[0]) == (0, "POINT")
    failing = closed("2>&- <&-", *at_receiver, "points", "unknown")
    assert (failing.returncode, failing.stdout) == (10, "")


def test_a_scrub_is_cancelled(at_receiver: Run, sockets: dict[str, Any]) -> None:
    done = at_receiver("scrub", "web", "--cancel")
    assert sockets["receiver_orders"][-1] == ("cancel scrub", "web")
    assert "a scrub of group web was cancelled at 2026-03-01T02:00:00.000000Z" in done.stdout
    assert at_receiver("scrub", "web", "--cancel", "--status").returncode == 2
    assert at_receiver("scrub", "web", "--cancel", "--rate", "1MiB").returncode == 2
