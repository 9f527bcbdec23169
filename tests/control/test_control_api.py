# SPDX-License-Identifier: Apache-2.0
"""Client and server over a real unix socket."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from replicator.base.errors import (
    DamageError,
    FencedError,
    IdentityError,
    NoPointError,
    NoSpaceError,
    NotFoundError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
    VersionError,
)
from replicator.base.mishaps import placed
from replicator.control import server as server_module
from replicator.control.client import ControlClient
from replicator.control.orders import (
    CLOSE_VIEW,
    MARK,
    OPEN_VIEW,
    PLAN_ROLLBACK,
    POINTS,
    RESTORE,
    ROLLBACK,
    SCRUB,
    SCRUBBED,
    STATUS,
    VIEWS,
)
from replicator.control.requests import (
    MarkRequest,
    PointsRequest,
    RestoreRequest,
    RollbackRequest,
    ScrubRequest,
    ViewRequest,
)
from replicator.control.server import HTTP_STATUS, INTERNAL
from replicator.control.types import Progress
from tests.control.canned import FIRST, GROUP, SECOND, VIEW
from tests.control.daemon import Daemon
from tests.control.services import Audited, CannedAgent, CannedReceiver, FailingReceiver, serve

in_thread = asyncio.to_thread


async def test_each_order_reaches_the_service_and_its_result_comes_back(daemon: Daemon) -> None:
    client = daemon.client
    assert (await in_thread(client.order, STATUS)).groups == [GROUP]
    assert await in_thread(client.order, POINTS, "web", PointsRequest(since="1h ago")) == [
        FIRST,
        SECOND,
    ]
    assert await in_thread(client.order, VIEWS) == [VIEW]
    assert (
        await in_thread(client.order, OPEN_VIEW, request=ViewRequest(group="web", at="latest"))
    ).result == VIEW
    await in_thread(client.order, CLOSE_VIEW, "v1")
    assert (
        await in_thread(
            client.order, PLAN_ROLLBACK, "web", RollbackRequest(to="latest", dry_run=True)
        )
    ).result.changed_bytes == 3 << 20
    rolled_back = await in_thread(client.order, ROLLBACK, "web", RollbackRequest(to="10m ago"))
    assert rolled_back.choice.distance_seconds == 3.25
    assert rolled_back.result.before.kind == "before-rollback"
    restored = await in_thread(client.order, RESTORE, "web", RestoreRequest(at="latest", to="/r"))
    assert restored.result.files == ["/r/web-vda.raw", "/r/web.xml"]
    assert (await in_thread(client.order, SCRUB, "web", ScrubRequest(wait=False, rate=7))).bad[
        0
    ].points == [1, 2]
    assert (await in_thread(client.order, SCRUBBED, "web")).bad[0].healed
    assert daemon.receiver.orders == [
        ("points", "web", "1h ago", "None"),
        ("close_view", "v1"),
        ("rollback", "web", "10m ago"),
        ("restore", "web", "latest", "/r"),
        ("scrub", "web", "False", "7"),
    ]


@pytest.mark.parametrize(
    "kind",
    [
        ReplicatorError,
        UsageError,
        NotFoundError,
        OwnedError,
        IdentityError,
        DamageError,
        NoPointError,
        NoSpaceError,
        FencedError,
        VersionError,
        UnreachableError,
    ],
)
async def test_every_error_arrives_as_its_own_class(
    tmp_path: Path, kind: type[ReplicatorError]
) -> None:
    receiver = FailingReceiver(kind("what happened", hint="what to do"))
    daemon = Daemon(tmp_path / "s", receiver, Audited())
    server = await serve(daemon.path, receiver, daemon.audit)
    with pytest.raises(ReplicatorError) as caught:
        await in_thread(daemon.client.order, POINTS, "web")
    status, text = await in_thread(daemon.raw, "GET", "/v1/groups/web/points")
    await server.close()
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.hint) == ("what happened", "what to do")
    assert status == HTTP_STATUS.get(kind.name, INTERNAL) >= 400
    assert json.loads(text) == {
        "error": kind.name,
        "message": "what happened",
        "hint": "what to do",
    }


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [(errno.ENOSPC, NoSpaceError, ""), (errno.EDQUOT, NoSpaceError, ""), (errno.EIO, None, "disk")],
)
async def test_what_the_system_refuses_becomes_words_once_and_is_no_bug(
    tmp_path: Path, code: int, kind: type[ReplicatorError] | None, hint: str
) -> None:
    refused = placed(OSError(code, os.strerror(code)), "creating", "/dr/a.sock")
    receiver = FailingReceiver(refused)
    daemon = Daemon(tmp_path / "s", receiver, Audited())
    server = await serve(daemon.path, receiver, daemon.audit)
    with pytest.raises(kind or ReplicatorError) as failed:
        await in_thread(daemon.client.order, POINTS, "web")
    await server.close()
    assert failed.value.message == f"/dr/a.sock: creating: {os.strerror(code)}"
    assert hint in failed.value.hint


async def test_a_bug_in_the_service_is_told_from_a_mishap(tmp_path: Path) -> None:
    receiver = FailingReceiver(KeyError("a bug"))
    daemon = Daemon(tmp_path / "s", receiver, Audited())
    server = await serve(daemon.path, receiver, daemon.audit)
    with pytest.raises(ReplicatorError, match="failed inside"):
        await in_thread(daemon.client.order, POINTS, "web")
    await server.close()


async def test_progress_comes_before_the_result(daemon: Daemon) -> None:
    daemon.receiver.rollback_may_end = asyncio.Event()
    seen: list[Progress] = []
    came = threading.Event()

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        came.set()

    order = asyncio.create_task(
        in_thread(
            daemon.client.order,
            ROLLBACK,
            "web",
            RollbackRequest(to="latest"),
            on_progress=on_progress,
        )
    )
    assert await in_thread(came.wait, 10)
    assert not order.done()
    daemon.receiver.rollback_may_end.set()
    assert (await order).result.kind == "rollback"
    assert all(progress.what == "writing" for progress in seen)


async def test_an_error_after_progress_still_is_that_error(daemon: Daemon) -> None:
    daemon.receiver.rollback_may_end = asyncio.Event()
    came = threading.Event()
    order = asyncio.create_task(
        in_thread(
            daemon.client.order,
            ROLLBACK,
            "web",
            RollbackRequest(to="#2"),
            on_progress=lambda _progress: came.set(),
        )
    )
    assert await in_thread(came.wait, 10)
    daemon.receiver.rollback_may_end.set()
    with pytest.raises(DamageError, match="offset 192"):
        await order


async def test_a_silent_order_shows_life(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "KEEPALIVE_SECONDS", 0.02)
    daemon.receiver.rollback_may_end = asyncio.Event()
    asyncio.get_running_loop().call_later(0.3, daemon.receiver.rollback_may_end.set)
    status, text = await in_thread(
        daemon.raw, "POST", "/v1/groups/web/rollback", b'{"to": "latest"}'
    )
    *before, last, _end = text.split("\n")
    assert status == 200
    assert before.count("") >= 3
    assert json.loads(last)["result"]["result"]["kind"] == "rollback"


def begin(path: Path, target: str, body: bytes) -> socket.socket:
    """Sends an order and leaves the answer unread."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    return sock


async def test_a_rollback_goes_on_when_its_client_has_gone(daemon: Daemon) -> None:
    daemon.receiver.rollback_may_end = asyncio.Event()
    sock = begin(daemon.path, "/v1/groups/web/rollback", b'{"to": "latest"}')
    assert await in_thread(daemon.receiver.rollback_started.wait, 10)
    sock.close()
    await in_thread(daemon.client.order, STATUS)  # the server has seen the hang-up when it answers
    daemon.receiver.rollback_may_end.set()
    await asyncio.wait_for(daemon.receiver.rollback_ended.wait(), 10)
    await in_thread(daemon.client.order, STATUS)
    assert [entry.outcome for entry in daemon.audit] == ["started", "done"]


async def test_a_waiting_mark_ends_with_its_client(tmp_path: Path) -> None:
    agent, audit = CannedAgent(), Audited()
    server = await serve(tmp_path / "s", agent, audit)
    body = b'{"label": "forever", "wait": true}'
    sock = begin(tmp_path / "s", "/v1/groups/web/mark", body)
    await asyncio.wait_for(agent.mark_waits.wait(), 10)
    sock.close()
    await asyncio.wait_for(agent.mark_was_cancelled.wait(), 10)
    await server.close()
    assert [entry.outcome for entry in audit] == ["started", "cancelled"]


async def test_closing_the_daemon_ends_a_waiting_mark_at_once(tmp_path: Path) -> None:
    agent, audit = CannedAgent(), Audited()
    server = await serve(tmp_path / "s", agent, audit)
    client = ControlClient(tmp_path / "s")
    order = asyncio.create_task(
        in_thread(lambda: client.order(MARK, "web", MarkRequest(label="forever", wait=True)))
    )
    await asyncio.wait_for(agent.mark_waits.wait(), 10)
    await asyncio.wait_for(server.close(), 5)
    with pytest.raises(UnreachableError):
        await order
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("method", "target", "order"),
    [("POST", "/v1/groups/web/mark", "mark"), ("POST", "/v1/groups/web/resync", "resync")],
)
async def test_the_wrong_daemon_names_the_right_one(
    daemon: Daemon, method: str, target: str, order: str
) -> None:
    status, text = await in_thread(daemon.raw, method, target, b"{}")
    assert status == 400
    assert json.loads(text)["error"] == "usage"
    assert json.loads(text)["message"] == (
        f"{order} is served by the agent; this is the receiver dr1"
    )


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "name"),
    [
        ("GET", "/v1/nothing", None, 404, "usage"),
        ("PUT", "/v1/status", b"{}", 405, "usage"),
        ("GET", "/v1/groups/web/points?sinze=1", None, 400, "usage"),
        ("GET", "/v1/groups/..%2F..%2Fetc/points", None, 404, "not-found"),
        ("POST", "/v1/groups/web/rollback", b"{", 400, "usage"),
        ("POST", "/v1/groups/web/rollback", b"\xff", 400, "usage"),
        ("POST", "/v1/groups/web/rollback", b'{"to": 5}', 400, "usage"),
        ("POST", "/v1/groups/web/rollback", b'{"to": "latest", "dryrun": true}', 400, "usage"),
        ("POST", "/v1/groups/web/restore", b'{"at": "latest", "to": "out"}', 400, "usage"),
        ("POST", "/v1/groups/web/rollback", b'"' + b"x" * (65 << 10), 413, "usage"),
        ("POST", "/v1/views", b'{"group": "../x", "at": "latest"}', 404, "not-found"),
    ],
)
async def test_bad_requests_are_refused_in_json_and_do_nothing(
    *, daemon: Daemon, method: str, target: str, body: bytes | None, status: int, name: str
) -> None:
    found_status, text = await in_thread(daemon.raw, method, target, body)
    assert (found_status, json.loads(text)["error"]) == (status, name)
    assert daemon.receiver.orders == []


async def test_the_socket_is_for_its_group_only_and_goes_with_the_daemon(tmp_path: Path) -> None:
    server = await serve(tmp_path / "s", CannedReceiver(), Audited())
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o660
    await server.close()
    assert not (tmp_path / "s").exists()


async def test_a_second_daemon_leaves_the_first_alone(daemon: Daemon) -> None:
    with pytest.raises(OwnedError):
        await serve(daemon.path, CannedReceiver(), Audited())
    assert (await in_thread(daemon.client.order, STATUS)).role == "receiver"


async def test_the_client_waits_for_a_daemon_that_is_about_to_start(tmp_path: Path) -> None:
    client = ControlClient(tmp_path / "s", wait_seconds=10)
    order = asyncio.create_task(in_thread(client.order, STATUS))
    await asyncio.sleep(0.2)
    assert not order.done()
    server = await serve(tmp_path / "s", CannedAgent(), Audited())
    assert (await order).name == "kvm1"
    await server.close()


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="no daemon answers"):
        ControlClient(tmp_path / "s", wait_seconds=0.1).order(STATUS)


def test_a_daemon_that_hangs_up_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(UnreachableError, match="did not finish"):
            ControlClient(tmp_path / "s").order(STATUS)
        thread.join()
