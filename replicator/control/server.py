# SPDX-License-Identifier: Apache-2.0
"""The control API's server: HTTP on a unix socket, in front of a daemon's service; and /metrics.

Short orders answer with one JSON document. Long ones answer with lines: `{"progress": …}` as it
goes, empty lines to show life, and a last line `{"result": …}` or `{"error": …}`. An order that
fails before its first line gets a plain error answer with its HTTP status.

Who may order is decided by the socket's owner and mode. Each order that changes something is
handed to the audit twice, before and after; an audit that refuses (raises) stops it.

Concurrency: each order is a task of its own; the service serialises what must not overlap.
`close` lets orders that change something end for a while, then cancels them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from replicator.base.address import Address
from replicator.base.errors import OwnedError, ReplicatorError, UsageError, from_name
from replicator.base.trouble import words_of
from replicator.base.unixsocket import inode_of, listen_unix, remove_unix
from replicator.control.orders import ORDERS, Order
from replicator.control.service import Answers, Incoming
from replicator.control.types import ErrorBody, Progress

BODY_BYTES_MAX = 64 << 10
KEEPALIVE_SECONDS = 5.0
CLOSE_GRACE_SECONDS = 10.0

HTTP_STATUS = {
    "usage": 400,
    "identity": 403,
    "not-found": 404,
    "no-point": 404,
    "owned": 409,
    "fenced": 409,
    "version": 409,
    "unreachable": 503,
    "no-space": 507,
}
INTERNAL = 500


class _NotHttp(logging.Filter):
    """aiohttp reports a request that is not HTTP like a bug, with all its bytes: not here."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.levelno, record.levelname = logging.WARNING, "WARNING"
            record.msg, record.args = "a request that is not HTTP was refused", ()
            record.exc_info = None
        return True


_http_log = logging.getLogger(f"{__name__}.http")
_http_log.addFilter(_NotHttp())


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One order: who gave it, what it was, how it ended.

    `outcome` is "started", "done", "cancelled", or the name of the error.
    """

    order: str
    object: str
    argument: str
    uid: int
    pid: int
    outcome: str
    message: str = ""


Audit = Callable[[AuditEntry], None]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Orders = dict[asyncio.Task[Any], Order[Any, Any]]


class Server:
    """Something listening, until `close`."""

    def __init__(self, runner: web.AppRunner, orders: Orders) -> None:
        self._runner = runner
        self._orders = orders
        self._socket_file: tuple[Path, int] | None = None

    async def listen(self, sock: socket.socket) -> None:
        await self._runner.setup()
        await web.SockSite(self._runner, sock, backlog=128).start()

    def owns(self, path: Path) -> None:
        """`close` removes this socket file."""
        self._socket_file = path, inode_of(path)

    def addresses(self) -> list[Any]:
        """What `getsockname` says: with port 0 the port that was chosen."""
        return list(self._runner.addresses)

    async def close(self) -> None:
        for site in list(self._runner.sites):
            await site.stop()
        for task, order in self._orders.items():
            if not order.is_finished_anyway:
                task.cancel()
        if self._orders:
            await asyncio.wait(self._orders, timeout=CLOSE_GRACE_SECONDS)
        for task in self._orders:
            task.cancel()
        await self._runner.cleanup()
        if self._socket_file is not None:
            remove_unix(*self._socket_file)


async def serve_control(
    path: Path, answers: Answers, *, name: str, audit: Audit, mode: int = 0o660
) -> Server:
    """Serves until closed; `name` is the daemon's. Raises OwnedError where somebody serves `path`
    already."""
    control = _Control(answers, name, audit)
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_speak_json])
    for order in ORDERS:
        if not order.is_plan:
            app.router.add_route(order.method, order.path, control.handler(order))
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_http_log,
        handler_cancellation=True,
        shutdown_timeout=1.0,
    )
    server = Server(runner, control.orders)
    await server.listen(listen_unix(path, mode=mode))
    server.owns(path)
    return server


async def serve_metrics(address: Address, registry: CollectorRegistry) -> Server:
    """Serves `registry` at /metrics over TCP."""

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_get("/metrics", metrics)
    server = Server(web.AppRunner(app, access_log=None, logger=_http_log), {})
    await server.listen(_listen_tcp(address))
    return server


def _listen_tcp(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        return socket.create_server((address.host, address.port), family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OwnedError(
                f"cannot serve metrics at {address}: another program listens there already",
                hint="choose another metrics address, or stop that program",
            ) from None
        raise ReplicatorError(
            f"cannot serve metrics at {address}: {error.strerror or error}"
        ) from None


class _Control:
    """Turns orders into aiohttp's handlers for one daemon."""

    def __init__(self, answers: Answers, name: str, audit: Audit) -> None:
        self._answers = answers
        self._name = name
        self._audit = audit
        self.orders: Orders = {}

    def handler(self, order: Order[Any, Any]) -> Handler:
        return self._serve(order) if self._answers.role in order.roles else self._refuse(order)

    def _refuse(self, order: Order[Any, Any]) -> Handler:
        right, role = order.roles[0], self._answers.role
        what = order.audit or order.path.rsplit("/", 1)[-1]

        async def refuse(_request: web.Request) -> web.Response:
            raise UsageError(
                f"{what} is served by the {right}; this is the {role} {self._name}",
                hint=f"name the {right}'s control socket with --socket",
            )

        return refuse

    def _serve(self, order: Order[Any, Any]) -> Handler:
        async def serve(request: web.Request) -> web.StreamResponse:
            reports = _Reports()
            name = next(iter(request.match_info.values()), "")
            asked = Incoming(name, request.query, await request.read())
            entry = _audit_entry(order, _socket_of(request), asked)
            task = asyncio.create_task(self._carry_out(order, asked, reports, entry))
            self.orders[task] = order
            task.add_done_callback(self._ended)
            try:
                if order.is_long:
                    return await _stream(request, task, reports)
                return _json(await asyncio.shield(task))
            except (asyncio.CancelledError, ConnectionResetError):
                if not order.is_finished_anyway:
                    task.cancel()
                raise asyncio.CancelledError from None  # aiohttp's word for "nobody listens"

        return serve

    async def _carry_out(
        self, order: Order[Any, Any], asked: Incoming, reports: _Reports, entry: AuditEntry
    ) -> object:
        if not order.audit:
            return await self._run(order, asked, reports)
        self._audit(replace(entry, outcome="started"))
        try:
            result = await self._run(order, asked, reports)
        except ReplicatorError as error:
            self._end(replace(entry, outcome=error.name, message=error.message))
            raise
        except asyncio.CancelledError:
            self._end(replace(entry, outcome="cancelled"))
            raise
        unrecorded = self._end(replace(entry, outcome="done"))
        if unrecorded is not None:
            text = f"{entry.order} was carried out, but {unrecorded.message}"
            raise from_name(unrecorded.name, text, unrecorded.hint)
        return result

    async def _run(self, order: Order[Any, Any], asked: Incoming, reports: _Reports) -> object:
        """The edge at which the operating system's refusal becomes words, for all orders."""
        try:
            return await self._answers.to(order, asked, reports)
        except OSError as error:
            raise words_of(error) from error

    def _end(self, entry: AuditEntry) -> ReplicatorError | None:
        """Records how an order ended; if that fails, how it ended counts more."""
        try:
            self._audit(entry)
        except ReplicatorError as error:
            logging.getLogger(__name__).error("end of an order not recorded: %s", error)
            return error
        return None

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Takes note of the outcome, so that an order whose client has gone ends quietly; a bug
        is not quiet: the log gets it."""
        del self.orders[task]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ReplicatorError):
            logging.getLogger(__name__).error("control order failed", exc_info=error)


class _Reports:
    """The newest progress, handed from any thread to the loop; what was not fetched is dropped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._newest: Progress | None = None
        self._news = asyncio.Event()

    def __call__(self, progress: Progress) -> None:
        was_fetched = self._newest is None
        self._newest = progress
        if was_fetched:
            self._loop.call_soon_threadsafe(self._news.set)

    async def wait(self) -> None:
        await self._news.wait()

    def fetch(self) -> Progress | None:
        self._news.clear()
        newest, self._newest = self._newest, None
        return newest


async def _stream(
    request: web.Request, order: asyncio.Task[Any], reports: _Reports
) -> web.StreamResponse:
    """Writes lines until `order` ends. Raises its error if nothing was written before."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    while not await _done_or_news(order, reports):
        if not response.prepared:
            await response.prepare(request)
        progress = reports.fetch()
        await response.write(b"\n" if progress is None else _line({"progress": progress}))
    if not response.prepared and order.exception() is not None:
        order.result()
    last = _last_line(order)
    if not response.prepared:
        await response.prepare(request)
    await response.write(last)
    await response.write_eof()
    return response


async def _done_or_news(order: asyncio.Task[Any], reports: _Reports) -> bool:
    """True once `order` is done; False when there is progress to write, or nothing for long."""
    news = asyncio.create_task(reports.wait())
    try:
        await asyncio.wait(
            {order, news}, timeout=KEEPALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        news.cancel()
    return order.done()


def _last_line(order: asyncio.Task[Any]) -> bytes:
    """The outcome as a line. Raises what is not a mishap: a bug cuts the answer short."""
    try:
        return _line({"result": order.result()})
    except ReplicatorError as error:
        return _line(_body(error))


@web.middleware
async def _speak_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors of the service, and those of HTTP itself, as our JSON."""
    try:
        return await handler(request)
    except ReplicatorError as error:
        return _json(_body(error), HTTP_STATUS.get(error.name, INTERNAL))
    except web.HTTPException as error:
        text = f"{request.method} {request.path[:200]}: {error.reason}"
        return _json(_body(UsageError(text)), error.status)


def _body(error: ReplicatorError) -> ErrorBody:
    return ErrorBody(error=error.name, message=error.message, hint=error.hint)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


def _line(value: object) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _socket_of(request: web.Request) -> socket.socket:
    if request.transport is None:
        raise asyncio.CancelledError  # the client went away while we read its request
    sock: socket.socket = request.transport.get_extra_info("socket")
    return sock


def _audit_entry(order: Order[Any, Any], sock: socket.socket, asked: Incoming) -> AuditEntry:
    pid, uid, _gid = _peer(sock)
    argument = asked.body.decode(errors="replace")
    return AuditEntry(order.audit, asked.name, argument, uid=uid, pid=pid, outcome="")


def _peer(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process at the other end of a unix socket."""
    fields = struct.Struct("3i")
    pid, uid, gid = fields.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, fields.size)
    )
    return pid, uid, gid
