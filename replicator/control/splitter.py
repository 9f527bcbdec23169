# SPDX-License-Identifier: Apache-2.0
"""The protocol between agent and splitter: one JSON object per line on a unix socket. No I/O.

    agent → splitter   {"id": 7, "do": "mark", "group": "g", "label": "x", "kind": "application"}
    splitter → agent   {"id": 7, "ok": {…}}  |  {"id": 7, "error": {"name", "message", "hint"}}
    after `subscribe`  {"status": {…}}       whenever it changed, and as a heartbeat

The splitter alone appends to the log: what the agent wants in it, it asks for here. Requests on
one connection are carried out and answered in order. Both ends are classes without a socket:
bytes go in, events come out, the encoding functions give the bytes to send.

Versions. An upgrade never restarts the splitter, since that costs each of its groups a sync; so a
newer agent speaks with an older splitter, and after a downgrade an older agent with a newer one.
* `hello` tells the splitter's PROTOCOL. It rises by one with whatever an agent may want to ask for;
  NEWS says what each one brought, and what is missing until an older splitter is started anew.
* An order has the number of the protocol that it came with (`since`), and is given to no splitter
  below it: the agent goes without, or says why it cannot.
* Fields that are not known are ignored at both ends, so a field that came later has a default, is
  left out where it has that, and may be ignored without harm. One that may not is a new order.
* States and other words of a status are never added to: an older agent could not read the line.

A line that is not a request is answered with an error and costs nothing else. A line longer than
LINE_BYTES_MAX ends the connection: what follows it cannot be told apart. A newline inside a JSON
string is escaped, so a line break is always the end of a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import msgspec

from replicator.base.errors import ReplicatorError, UsageError, from_name

LINE_BYTES_MAX = 1 << 20
STATUS_INTERVAL_MIN_NS = 5_000_000  # changes closer together than this share one push
HEARTBEAT_NS = 250_000_000  # a status comes at least this often

PROTOCOL = 2
NEWS: dict[int, str] = {
    1: "copies that are told apart by their sync; without it nothing can be protected",
    2: "a changed configuration; without it groups come and go by a restart, or by its SIGHUP",
}
"""What each protocol brought, in words for a status."""

GroupState = Literal["closed", "syncing", "ready", "suspended", "lost"]
DiskState = Literal["idle", "syncing", "flushed", "complete"]
CutKind = Literal["crash", "application"]
StreamEnd = Literal["", "final cut", "unwatched"]
"""How the stream of a source that stopped has ended: with a cut of all that it wrote, or without
one, since nobody watched how it stopped. Empty: it has not ended, or in another way."""


# -- answers --------------------------------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Unknown fields are ignored, so that a newer splitter serves an older agent."""


class Done(Answer, frozen=True, kw_only=True):
    """It was done; there is nothing to tell."""


class HelloAnswer(Answer, frozen=True, kw_only=True):
    pid: int
    instance: str
    """UUID of this process: another one means that the splitter was started anew."""
    version: str
    protocol: int = 0
    """0: that of version 0.1.0, which did not tell."""


class StreamOpened(Answer, frozen=True, kw_only=True):
    stream: str
    ordinal: int
    first_lsn: int


class DiskDeclared(Answer, frozen=True, kw_only=True):
    index: int


class Marked(Answer, frozen=True, kw_only=True):
    lsn: int
    """End of the cut record."""
    time_ns: int
    ordinal: int = 0
    """Of the stream that it was made in; 0 from a splitter that does not say it."""


class Reloaded(Answer, frozen=True, kw_only=True):
    """`changes` in words, those that wait for a start among them."""

    changes: list[str]


# -- requests -------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="do"):
    """`id` comes back in the answer; the caller counts. `since`: the first protocol that has it."""

    answer: ClassVar[type[Answer]] = Done
    since: ClassVar[int] = 1
    id: int


class Hello(Request, frozen=True, kw_only=True, tag="hello"):
    """The first order, since its answer says which others there are."""

    answer: ClassVar[type[Answer]] = HelloAnswer
    since: ClassVar[int] = 0


class Subscribe(Request, frozen=True, kw_only=True, tag="subscribe"):
    """From the answer on, statuses are pushed on this connection."""

    since: ClassVar[int] = 0


class OpenStream(Request, frozen=True, kw_only=True, tag="open_stream", omit_defaults=True):
    """Begin a new stream, of a higher ordinal than `above_ordinal` and than all known here. Stamps
    are to be later than `above_time_ns`, which the receiver holds."""

    answer: ClassVar[type[Answer]] = StreamOpened
    group: str
    above_ordinal: int
    reason: str
    above_time_ns: Annotated[int, msgspec.Meta(ge=0)] = 0


class DeclareDisk(Request, frozen=True, kw_only=True, tag="declare_disk"):
    """Serve `group/disk`. `instance` is the disk's identity, a UUID."""

    answer: ClassVar[type[Answer]] = DiskDeclared
    group: str
    disk: str
    size: int
    instance: str


class SyncBegin(Request, frozen=True, kw_only=True, tag="sync_begin", omit_defaults=True):
    """A block copy of this disk is about to start, into the export that the disk's status then
    names, and no copy of it from before lives: what was connected is dropped.

    `source_errors`: how many operations of the guest on this disk QEMU had counted as failed
    before. The splitter only remembers it, over the lives of the agent: one more since then means
    that source and replica may differ."""

    group: str
    disk: str
    reason: str
    source_errors: int | None = None


class Ready(Request, frozen=True, kw_only=True, tag="ready"):
    """READY of this disk's job was read back after the FLUSH on this connection (`flushed_by` of
    the status); the splitter appends the sync-end once the rest of its own rule holds."""

    group: str
    disk: str
    connection: int


class AppendDomainXml(Request, frozen=True, kw_only=True, tag="append_domain_xml"):
    group: str
    domain: str
    xml: str


class Mark(Request, frozen=True, kw_only=True, tag="mark", omit_defaults=True):
    """Cut now, also an idle group. `expire_ns`: see journal.bodies.Cut. `not_after_ns`: refuse it
    when the machine's monotonic clock has come to this. What is not wanted is not on the line, so
    an older splitter takes the order too."""

    answer: ClassVar[type[Answer]] = Marked
    group: str
    label: str | None = None
    kind: CutKind = "crash"
    expire_ns: Annotated[int, msgspec.Meta(ge=0)] = 0
    not_after_ns: int | None = None


class Resync(Request, frozen=True, kw_only=True, tag="resync", omit_defaults=True):
    """Arm a lost external group again: what comes until the next FLUSH is the sync. If a stream
    is opened for it, its ordinal is above `above_ordinal`, its stamps behind `above_time_ns`."""

    group: str
    above_ordinal: int = 0
    above_time_ns: Annotated[int, msgspec.Meta(ge=0)] = 0


class CloseStream(Request, frozen=True, kw_only=True, tag="close_stream", omit_defaults=True):
    """The source is known to have stopped: with `final_cut` the end is a cut of the time of its
    first sign; `unwatched`, it ends without one. Neither: continuity is lost. With `stream`,
    nothing is done if another one is open by now."""

    group: str
    reason: str
    final_cut: bool = False
    unwatched: bool = False
    stream: str | None = None


class RemoveDisk(Request, frozen=True, kw_only=True, tag="remove_disk"):
    """A libvirt disk is none of the group's any more: no cut lists it from here on. Its mirror is
    served until it ends, and recorded no more."""

    since: ClassVar[int] = 2
    group: str
    disk: str


class Reload(Request, frozen=True, kw_only=True, tag="reload"):
    """Read the configuration anew and take it over, but for the groups that are gone: each of them
    is served until `remove_group`. Refused, nothing has changed."""

    answer: ClassVar[type[Answer]] = Reloaded
    since: ClassVar[int] = 2


class RemoveGroup(Request, frozen=True, kw_only=True, tag="remove_group"):
    """Of a group that is gone from the configuration: its stream ends, its clients are dropped, and
    nothing of it is served any more. Its files stay."""

    since: ClassVar[int] = 2
    group: str


class DropConnections(Request, frozen=True, kw_only=True, tag="drop_connections"):
    """Close the group's NBD connections; its jobs end, its guests do not notice."""

    group: str


AnyRequest = (
    Hello
    | Subscribe
    | OpenStream
    | DeclareDisk
    | SyncBegin
    | Ready
    | AppendDomainXml
    | Mark
    | Resync
    | CloseStream
    | RemoveDisk
    | Reload
    | RemoveGroup
    | DropConnections
)


# -- status ---------------------------------------------------------------------------------------


class LatencyStatus(Answer, frozen=True, kw_only=True):
    """Histogram from request to reply. `counts` has one more entry than `bounds_us`: the rest."""

    bounds_us: list[int]
    counts: list[int]
    sum_us: int
    count: int


class SplitterDiskStatus(Answer, frozen=True, kw_only=True):
    name: str
    index: int
    instance: str
    size: int
    connected: int
    """Number of live connections."""
    state: DiskState
    source_errors: int | None = None
    """What `sync_begin` of its sync said; None: nothing."""
    export: str = ""
    """The export of the sync that makes or made it complete: only what comes over this one is of
    it. With libvirt the disk's plain name outside of a sync."""
    flushed_by: int = 0
    """The connection whose FLUSH awaits READY, in state "flushed"; 0 in any other."""
    void: str = ""
    """Why the sync before was void, until one has ended."""


class SplitterGroupStatus(Answer, frozen=True, kw_only=True):
    """`end_lsn` bounds what may be read from the spool. `held_until_ns`: the last cut stands for
    everything up to this time, because nothing came after it.

    `said_ns`: when this was so, by the machine's monotonic clock, which the agent has too.
    `sign_ns`: of a suspended group, when the first sign of its
    source's end was seen, by the same clock; else 0."""

    name: str
    state: GroupState
    reason: str
    stream: str | None
    ordinal: int
    first_lsn: int
    end_lsn: int
    last_cut_time_ns: int
    held_until_ns: int
    disks: list[SplitterDiskStatus]
    memory_bytes: int
    disk_bytes: int
    latency: LatencyStatus
    requests: int
    bytes: int
    said_ns: int = 0
    sign_ns: int = 0
    ended: StreamEnd = ""


class SplitterStatus(Answer, frozen=True, kw_only=True):
    instance: str
    groups: list[SplitterGroupStatus]


# -- lines ----------------------------------------------------------------------------------------


class ErrorFields(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    message: str
    hint: str = ""


class ProtocolError(ReplicatorError):
    """The far end does not speak this protocol; the connection is of no more use."""


class LineBuffer:
    """Cuts bytes into lines. Invariant: what is held is one unfinished line, bounded."""

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._held = bytearray()
        self._max = line_bytes_max

    def receive_data(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends. Raises ProtocolError."""
        *whole, rest = data.split(b"\n")
        lines = []
        for part in whole:
            lines.append(bytes(self._held) + part)
            self._held.clear()
        self._held += rest
        if len(self._held) > self._max or any(len(line) > self._max for line in lines):
            raise ProtocolError(f"a control line is longer than {self._max} bytes")
        return lines


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that is no request; `line` answers it."""

    line: bytes


_request_decoder: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
_encoder = msgspec.json.Encoder()


class _OnlyId(msgspec.Struct):
    id: int = 0


class SplitterSide:
    """The splitter's end of one connection."""

    def __init__(self) -> None:
        self._lines = LineBuffer()

    def receive_data(self, data: bytes) -> list[AnyRequest | Refused]:
        """Requests in order. Raises ProtocolError when the connection must end."""
        return [_parse_request(line) for line in self._lines.receive_data(data) if line.strip()]


def encode_ok(request: AnyRequest, answer: Answer) -> bytes:
    assert isinstance(answer, request.answer), f"{answer} does not answer {request}"
    return _line({"id": request.id, "ok": answer})


def encode_error(request_id: int, error: ReplicatorError) -> bytes:
    fields = ErrorFields(name=error.name, message=error.message, hint=error.hint)
    return _line({"id": request_id, "error": fields})


def encode_status(status: SplitterStatus) -> bytes:
    return _line({"status": status})


def _line(message: object) -> bytes:
    return _encoder.encode(message) + b"\n"


def _parse_request(line: bytes) -> AnyRequest | Refused:
    try:
        return _request_decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refused(encode_error(_id_of(line), UsageError(f"not a control request: {error}")))


def _id_of(line: bytes) -> int:
    """The id of a line that is otherwise no request, so that its caller hears of it."""
    try:
        return msgspec.json.decode(line, type=_OnlyId).id
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0


@dataclass(frozen=True, slots=True)
class Answered:
    """Request `id` was carried out (`answer`) or refused (`error`)."""

    id: int
    answer: Answer | None
    error: ReplicatorError | None


class _FromSplitter(msgspec.Struct, frozen=True):
    id: int | None = None
    ok: msgspec.Raw = msgspec.Raw()
    error: ErrorFields | None = None
    status: SplitterStatus | None = None


_from_splitter_decoder = msgspec.json.Decoder(_FromSplitter)


class AgentSide:
    """The agent's end of one connection. Remembers which requests wait for an answer."""

    def __init__(self) -> None:
        self._lines = LineBuffer()
        self._waiting: dict[int, type[Answer]] = {}
        self._last_id = 0

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def send(self, request: AnyRequest) -> bytes:
        """The bytes to send. Each request carries an id of its own (`next_id`)."""
        assert request.id not in self._waiting, "two requests with one id"
        self._waiting[request.id] = request.answer
        return _line(request)

    def receive_data(self, data: bytes) -> list[Answered | SplitterStatus]:
        """Answers and statuses in order. Raises ProtocolError when the connection must end."""
        lines = self._lines.receive_data(data)
        try:
            return [self._parse(line) for line in lines if line.strip()]
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"the splitter sent what is no answer: {error}") from None

    def _parse(self, line: bytes) -> Answered | SplitterStatus:
        message = _from_splitter_decoder.decode(line)
        if message.status is not None:
            return message.status
        if message.id not in self._waiting:
            raise ProtocolError(f"the splitter answered request {message.id}, which was not asked")
        kind = self._waiting.pop(message.id)
        if message.error is not None:
            fields = message.error
            error = from_name(fields.name, fields.message, fields.hint)
            return Answered(message.id, None, error)
        if not bytes(message.ok):
            raise ProtocolError("the splitter sent an answer without 'ok' or 'error'")
        return Answered(message.id, msgspec.json.decode(message.ok, type=kind), None)
