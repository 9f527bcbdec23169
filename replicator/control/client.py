# SPDX-License-Identifier: Apache-2.0
"""The control API's client: blocking, http.client over a unix socket, one connection per order.

Waits for a socket that is not there yet, or that nobody listens on yet: a daemon that was started
a moment ago is not an error. An error of the daemon is raised as the class it had there. A daemon
that goes away, or falls silent in a long order, is an UnreachableError.
"""

from __future__ import annotations

import errno
import http.client
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from replicator.base.errors import ReplicatorError, UnreachableError, UsageError, from_name
from replicator.control.orders import A, Order, Q
from replicator.control.requests import Request
from replicator.control.types import ErrorBody, Progress

WAIT_SECONDS = 10.0  # for the daemon to listen
RETRY_SECONDS = 0.05
SILENCE_SECONDS = 60.0  # the daemon shows life every 5 s in a long order
LINE_BYTES_MAX = 64 << 20

R = TypeVar("R", bound=Request)
OnProgress = Callable[[Progress], None]

_NOT_YET = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)


def ignore_progress(_progress: Progress) -> None:
    """For callers that do not show it."""


class ControlClient:
    """One daemon, by its socket."""

    def __init__(
        self,
        path: Path,
        *,
        wait_seconds: float = WAIT_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
        zone: str | None = None,
    ) -> None:
        """`wait_seconds`: for the daemon to listen. `silence_seconds`: for a word of it then.
        `zone` is that of who types the texts that name a time: an IANA name, or an offset like
        +01:00. Without one, such a text has to state its own."""
        self._path = path
        self._wait_seconds = wait_seconds
        self._silence_seconds = silence_seconds
        self.zone = zone

    def order(
        self,
        order: Order[Q, A],
        name: str = "",
        request: Q | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> A:
        """`name`: of the group or view that the order is about, if it is about one. A request that
        may state a zone and does not gets that of the client. Raises what the daemon raised."""
        given = self._in_zone(order.request() if request is None else request)
        content = msgspec.json.encode(given) if order.takes_body else None
        target = _target(order, name, given)
        connection = _UnixConnection(self._path, self._wait_seconds, self._silence_seconds)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(order.method, target, content, headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response, self._path)
            if response.headers.get_content_type() == "application/x-ndjson":
                return _last_of(response, order.answer, on_progress, self._path)
            return msgspec.json.decode(response.read(), type=order.answer)
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise UnreachableError(
                f"the daemon at {self._path} did not finish its answer ({_why(error)})",
                hint="the order may have been carried out all the same: look at status and points",
            ) from None
        except msgspec.DecodeError as error:
            raise ReplicatorError(
                f"the daemon at {self._path} gave an answer that is not understood: {error}",
                hint="daemon and command may be of different versions",
            ) from None
        finally:
            connection.close()

    def _in_zone(self, request: R) -> R:
        if self.zone is None or getattr(request, "zone", self.zone) is not None:
            return request
        return msgspec.structs.replace(request, zone=self.zone)


class _Line(msgspec.Struct):
    """One line of a long order's answer: exactly one of progress, result, error."""

    progress: Progress | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: str | None = None
    message: str = ""
    hint: str = ""


def _last_of(
    response: http.client.HTTPResponse, kind: type[A], on_progress: OnProgress, path: Path
) -> A:
    while text := response.readline(LINE_BYTES_MAX):
        if not text.strip():
            continue
        line = msgspec.json.decode(text, type=_Line)
        if line.error is not None:
            raise from_name(line.error, line.message, line.hint)
        if line.progress is not None:
            on_progress(line.progress)
        elif bytes(line.result):
            return msgspec.json.decode(line.result, type=kind)
    raise ConnectionResetError(f"{path} was closed")


def _refusal(response: http.client.HTTPResponse, path: Path) -> ReplicatorError:
    content = response.read()
    try:
        body = msgspec.json.decode(content, type=ErrorBody)
    except msgspec.DecodeError:
        return ReplicatorError(
            f"the daemon at {path} failed inside (HTTP {response.status})",
            hint="its log has the details; this is a bug worth reporting",
        )
    return from_name(body.error, body.message, body.hint)


def _target(order: Order[Any, Any], name: str, request: Request) -> str:
    path = order.path.format(group=quote(name, safe=""), view=quote(name, safe=""))
    if not order.takes_query:
        return path
    fields = msgspec.to_builtins(request).items()
    query = urlencode({field: value for field, value in fields if value is not None})
    return f"{path}?{query}" if query else path


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, wait_seconds: float, silence_seconds: float) -> None:
        super().__init__("localhost", timeout=silence_seconds)
        self._path = path
        self._wait_seconds = wait_seconds
        self._silence_seconds = silence_seconds

    def connect(self) -> None:
        self.sock = _connect(self._path, self._wait_seconds)
        self.sock.settimeout(self._silence_seconds)


def _connect(path: Path, wait_seconds: float) -> socket.socket:
    """Connects as soon as somebody listens at `path`, for at most `wait_seconds`.

    Polls: a listen() on a socket file that is there already is no event that can be waited for.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            if error.errno not in _NOT_YET or time.monotonic() >= deadline:
                raise _no_connection(path, error) from None
            time.sleep(RETRY_SECONDS)
        else:
            return sock


def _no_connection(path: Path, error: OSError) -> ReplicatorError:
    if error.errno in _NOT_YET:
        return UnreachableError(
            f"no daemon answers at {path}", hint="is it running? --socket names another socket"
        )
    if isinstance(error, PermissionError):
        return ReplicatorError(
            f"{path}: {error.strerror}", hint="the socket's group may use it: sudo, or join it"
        )
    return UsageError(f"{path}: {error.strerror or error}")
