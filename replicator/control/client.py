# SPDX-License-Identifier: Apache-2.0
"""The control API's client: blocking, http.client over a unix socket, one connection per order.

Waits for a socket that is not there yet, or that nobody listens on yet: a daemon that was started
a moment ago is not an error. An error of the daemon is raised as the class it had there. A daemon
that goes away, or falls silent in a long order, is an UnreachableError.
"""

from __future__ import annotations

import errno
import http.client
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from replicator.base.errors import ReplicatorError, UnreachableError, UsageError, from_name
from replicator.control import endpoints
from replicator.control.types import (
    AcceptAuditRequest,
    AcceptClockRequest,
    AcceptRequest,
    AcceptResult,
    AuditAccepted,
    AuditRecord,
    AuditVerdict,
    Chosen,
    ClockAccepted,
    DropRequest,
    DropResult,
    ErrorBody,
    ForgetRequest,
    ForgetResult,
    GroupStatus,
    MarkedPoint,
    MarkRequest,
    Point,
    Progress,
    ReloadRequest,
    ReloadResult,
    Request,
    RestoreRequest,
    RestoreResult,
    RollbackPlan,
    RollbackRequest,
    RollbackResult,
    ScrubReport,
    ScrubRequest,
    Status,
    UnlockRequest,
    UnlockResult,
    View,
    ViewRequest,
    Write,
)

WAIT_SECONDS = 10.0  # for the daemon to listen
RETRY_SECONDS = 0.05
SILENCE_SECONDS = 60.0  # the daemon shows life every 5 s in a long order
LINE_BYTES_MAX = 64 << 20

T = TypeVar("T")
OnProgress = Callable[[Progress], None]

_NOT_YET = (errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN)


def ignore_progress(_progress: Progress) -> None:
    """For callers that do not show it."""


class ControlClient:
    """One daemon, by its socket. Every method is one order; see control/service.py."""

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

    def status(self) -> Status:
        return self._order("GET", endpoints.STATUS, Status)

    def points(self, group: str, since: str | None = None, until: str | None = None) -> list[Point]:
        query = {"since": since, "until": until, "zone": self.zone}
        given = urlencode({key: text for key, text in query.items() if text is not None})
        target = _target(endpoints.POINTS, group=group) + (f"?{given}" if given else "")
        return self._order("GET", target, list[Point])

    def writes(
        self, group: str, around: str, window: str | None = None, limit: int | None = None
    ) -> list[Write]:
        query = {
            "around": around,
            "window": window,
            "limit": None if limit is None else str(limit),
            "zone": self.zone,
        }
        given = urlencode({key: text for key, text in query.items() if text is not None})
        target = _target(endpoints.WRITES, group=group) + f"?{given}"
        return self._order("GET", target, list[Write])

    def reload(self, request: ReloadRequest) -> ReloadResult:
        return self._order("POST", endpoints.RELOAD, ReloadResult, request)

    def views(self) -> list[View]:
        return self._order("GET", endpoints.VIEWS, list[View])

    def audited(self, since: str | None = None, limit: int | None = None) -> list[AuditRecord]:
        query = {
            "since": since,
            "limit": None if limit is None else str(limit),
            "zone": None if since is None else self.zone,
        }
        given = urlencode({key: text for key, text in query.items() if text is not None})
        target = endpoints.AUDIT + (f"?{given}" if given else "")
        return self._order("GET", target, list[AuditRecord])

    def verify_audit(self, on_progress: OnProgress = ignore_progress) -> AuditVerdict:
        target = endpoints.AUDIT_VERIFY
        return self._order("GET", target, AuditVerdict, None, on_progress)

    def open_view(
        self, group: str, at: str, on_progress: OnProgress = ignore_progress
    ) -> Chosen[View]:
        """A read-only one, on a unix socket."""
        return self.serve_view(ViewRequest(group=group, at=at, zone=self.zone), on_progress)

    def serve_view(
        self, request: ViewRequest, on_progress: OnProgress = ignore_progress
    ) -> Chosen[View]:
        return self._order("POST", endpoints.VIEWS, Chosen[View], request, on_progress)

    def close_view(self, view_id: str) -> None:
        self._order("DELETE", _target(endpoints.VIEW, view=view_id), dict[str, Any])

    def mark(
        self,
        group: str,
        label: str | None,
        *,
        wait: bool,
        quiesce: bool = False,
        expire_seconds: int = 0,
        timeout_seconds: int = 600,
        on_progress: OnProgress = ignore_progress,
    ) -> MarkedPoint:
        request = MarkRequest(
            label=label,
            wait=wait,
            timeout_seconds=timeout_seconds,
            quiesce=quiesce,
            expire_seconds=expire_seconds,
        )
        target = _target(endpoints.MARK, group=group)
        return self._order("POST", target, MarkedPoint, request, on_progress)

    def forget(self, group: str, request: ForgetRequest) -> ForgetResult:
        target = _target(endpoints.FORGET, group=group)
        return self._order("POST", target, ForgetResult, request)

    def resync(self, group: str) -> GroupStatus:
        return self._order("POST", _target(endpoints.RESYNC, group=group), GroupStatus)

    def plan_rollback(self, group: str, to: str) -> Chosen[RollbackPlan]:
        request = RollbackRequest(to=to, dry_run=True, zone=self.zone)
        target = _target(endpoints.ROLLBACK, group=group)
        return self._order("POST", target, Chosen[RollbackPlan], request)

    def rollback(
        self,
        group: str,
        to: str,
        on_progress: OnProgress = ignore_progress,
        *,
        force_detach: bool = False,
    ) -> Chosen[RollbackResult]:
        target = _target(endpoints.ROLLBACK, group=group)
        request = RollbackRequest(to=to, force_detach=force_detach, zone=self.zone)
        return self._order("POST", target, Chosen[RollbackResult], request, on_progress)

    def restore(
        self,
        group: str,
        at: str,
        to: Path,
        on_progress: OnProgress = ignore_progress,
        *,
        image_format: Literal["raw", "qcow2"] = "raw",
        resume: bool = False,
        verify: bool = True,
        unverified: bool = False,
    ) -> Chosen[RestoreResult]:
        request = RestoreRequest(
            at=at,
            to=os.path.abspath(to),
            zone=self.zone,
            format=image_format,
            resume=resume,
            verify=verify,
            unverified=unverified,
        )
        target = _target(endpoints.RESTORE, group=group)
        return self._order("POST", target, Chosen[RestoreResult], request, on_progress)

    def scrub(
        self,
        group: str,
        *,
        waits: bool,
        rate: int | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> ScrubReport:
        request = ScrubRequest(wait=waits, rate=rate)
        target = _target(endpoints.SCRUB, group=group)
        return self._order("POST", target, ScrubReport, request, on_progress)

    def cancel_scrub(self, group: str) -> ScrubReport:
        return self._order("DELETE", _target(endpoints.SCRUB, group=group), ScrubReport)

    def scrubbed(self, group: str) -> ScrubReport:
        return self._order("GET", _target(endpoints.SCRUB, group=group), ScrubReport)

    def drop_points(self, group: str, request: DropRequest) -> DropResult:
        return self._order("POST", _target(endpoints.DROP_POINTS, group=group), DropResult, request)

    def unlock(self, group: str, reason: str) -> UnlockResult:
        request = UnlockRequest(break_lock=True, reason=reason)
        return self._order("POST", _target(endpoints.UNLOCK, group=group), UnlockResult, request)

    def accept(
        self, group: str, reason: str, on_progress: OnProgress = ignore_progress
    ) -> AcceptResult:
        target, request = _target(endpoints.ACCEPT, group=group), AcceptRequest(reason=reason)
        return self._order("POST", target, AcceptResult, request, on_progress)

    def accept_audit(self, reason: str) -> AuditAccepted:
        request = AcceptAuditRequest(reason=reason)
        return self._order("POST", endpoints.AUDIT_ACCEPT, AuditAccepted, request)

    def accept_clock(self, reason: str, *, dry_run: bool) -> ClockAccepted:
        request = AcceptClockRequest(reason=reason, dry_run=dry_run)
        return self._order("POST", endpoints.CLOCK, ClockAccepted, request)

    def _order(
        self,
        method: str,
        target: str,
        kind: type[T],
        body: Request | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> T:
        connection = _UnixConnection(self._path, self._wait_seconds, self._silence_seconds)
        try:
            content = None if body is None else msgspec.json.encode(body)
            connection.request(method, target, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response, self._path)
            if response.headers.get_content_type() == "application/x-ndjson":
                return _last_of(response, kind, on_progress, self._path)
            return msgspec.json.decode(response.read(), type=kind)
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


class _Line(msgspec.Struct):
    """One line of a long order's answer: exactly one of progress, result, error."""

    progress: Progress | None = None
    result: msgspec.Raw = msgspec.Raw()
    error: str | None = None
    message: str = ""
    hint: str = ""


def _last_of(
    response: http.client.HTTPResponse, kind: type[T], on_progress: OnProgress, path: Path
) -> T:
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


def _target(template: str, **names: str) -> str:
    return template.format(**{key: quote(name, safe="") for key, name in names.items()})


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
