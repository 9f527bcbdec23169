# SPDX-License-Identifier: Apache-2.0
"""Links over TLS on the loopback and within the process: the same session over both."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from replicator.base.address import Address
from replicator.base.clock import SystemClock
from replicator.base.errors import (
    IdentityError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.wire.frames import Frame, FrameBuilder
from replicator.wire.identity import client_context, server_context
from replicator.wire.limits import INBOX_HIGH_BYTES, SEND_HIGH_BYTES
from replicator.wire.link import Connector, Link, Peer
from replicator.wire.messages import Hello, Hold, Open, Opened
from replicator.wire.transport import TcpConnector, serve_wire
from tests.doubles.memory_link import MemoryConnector, MemoryLink
from tests.wire.logs import HELLO, OPEN, WELCOME, Log

CLOCK = SystemClock()
HOST = "127.0.0.1"
Session = Callable[[Link], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Pki:
    """A CA and what it has issued, as files."""

    directory: Path
    ca: trustme.CA

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.crt"

    def issue(self, *names: str, by: trustme.CA | None = None) -> tuple[Path, Path]:
        certificate = (by or self.ca).issue_cert(*names)
        base = self.directory / f"{names[0]}{'' if by is None else '-foreign'}"
        crt, key = base.with_suffix(".crt"), base.with_suffix(".key")
        certificate.cert_chain_pems[0].write_to_path(str(crt))
        certificate.private_key_pem.write_to_path(str(key))
        return crt, key

    def server(self) -> ssl.SSLContext:
        return server_context(self.ca_file, *self.issue(HOST, "receiver-1"))

    def client(self) -> ssl.SSLContext:
        return client_context(self.ca_file, *self.issue("agent-1", "agent-1.example"))


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    ca = trustme.CA()
    made = Pki(tmp_path, ca)
    ca.cert_pem.write_to_path(str(made.ca_file))
    return made


@asynccontextmanager
async def over_tls(pki: Pki, session: Session) -> AsyncIterator[Connector]:
    server = await serve_wire(Address(HOST, 0), pki.server, session, clock=CLOCK)
    try:
        yield TcpConnector(Address(HOST, server.port), pki.client, CLOCK)
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def in_memory(pki: Pki, session: Session) -> AsyncIterator[Connector]:
    connector = MemoryConnector(
        CLOCK, agent=Peer("agent", ("agent-1", "agent-1.example")), receiver=Peer("receiver", ())
    )
    connector.session = session
    try:
        yield connector
    finally:
        await connector.close()


Joined = Callable[[Pki, Session], AbstractAsyncContextManager[Connector]]
both = pytest.mark.parametrize("joined", [over_tls, in_memory])


async def greet(link: Link) -> None:
    """The receiver's part up to OPENED."""
    assert isinstance(await link.receive(), Hello)
    link.send(WELCOME)
    assert isinstance(await link.receive(), Open)
    link.send(Opened(0))


async def open_stream(link: Link) -> None:
    """The agent's part up to OPENED."""
    link.send(HELLO)
    await link.receive()
    link.send(OPEN)
    await link.receive()


def frames(count: int, payload_bytes: int) -> list[Frame]:
    log = Log()
    builder = FrameBuilder()
    made = []
    for number in range(count):
        start = log.end_lsn
        log.write(0, number << 20, os.urandom(payload_bytes))
        made.append(
            builder.build(
                bytes(log.data[start:]),
                start_lsn=start,
                end_lsn=log.end_lsn,
                chain_start=log.chains[start],
                chain_end=log.chain,
            )
        )
    return made


@both
async def test_frames_arrive_whole_and_in_order(joined: Joined, pki: Pki) -> None:
    sent = frames(40, 300_000)
    got: list[Frame] = []
    names: list[str] = []
    all_came = asyncio.Event()

    async def session(link: Link) -> None:
        names.extend(link.peer.names)
        await greet(link)
        while len(got) < len(sent):
            message = await link.receive()
            assert isinstance(message, Frame)
            got.append(message)
        all_came.set()
        with pytest.raises(UnreachableError):
            await link.receive()

    async with joined(pki, session) as connector:
        link = await connector.connect()
        await open_stream(link)
        for frame in sent:
            link.send(frame)
            await link.drain()
        await all_came.wait()
        link.close()
        await link.wait_closed()
    assert [frame.header for frame in got] == [frame.header for frame in sent]
    assert all(bytes(a.data) == bytes(b.data) for a, b in zip(got, sent, strict=True))
    assert names == ["agent-1", "agent-1.example"]


@both
async def test_a_reader_that_does_not_take_stops_the_sender(joined: Joined, pki: Pki) -> None:
    take, all_came = asyncio.Event(), asyncio.Event()
    count = 0

    async def session(link: Link) -> None:
        nonlocal count
        await greet(link)
        await take.wait()
        while count < 100:
            await link.receive()
            count += 1
        all_came.set()

    sent = frames(100, 400_000)
    async with joined(pki, session) as connector:
        link = await connector.connect()
        await open_stream(link)
        pushed = 0

        async def push_all() -> None:
            nonlocal pushed
            for frame in sent:
                link.send(frame)
                pushed += frame.size
                await link.drain()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(push_all(), 1.5)
        # Both mailboxes, and what the two kernels' socket buffers take on the way.
        assert pushed < INBOX_HIGH_BYTES + SEND_HIGH_BYTES + (20 << 20)
        take.set()
        for frame in sent[pushed // sent[0].size :]:
            link.send(frame)
            await link.drain()
        await all_came.wait()
        link.close()


@both
async def test_an_error_reaches_the_agent_behind_what_was_said_before(
    joined: Joined, pki: Pki
) -> None:
    async def session(link: Link) -> None:
        await greet(link)
        raise OwnedError("group g is fed by agent-2", hint="stop it there first")

    async with joined(pki, session) as connector:
        link = await connector.connect()
        await open_stream(link)
        with pytest.raises(OwnedError, match="fed by agent-2"):
            await link.receive()
        link.send(Hold(1, 2))  # dropped, not raised
        await link.wait_closed()


async def test_a_cut_link_ends_both_sessions(pki: Pki) -> None:
    ended = asyncio.Event()

    async def session(link: Link) -> None:
        await greet(link)
        try:
            await link.receive()
        except UnreachableError:
            ended.set()

    async with in_memory(pki, session) as connector:
        link = await connector.connect()
        await open_stream(link)
        assert isinstance(link, MemoryLink)
        link.cut()
        with pytest.raises(UnreachableError):
            await link.receive()
        await ended.wait()


async def test_nobody_listening_is_unreachable(pki: Pki) -> None:
    connector = TcpConnector(Address(HOST, 1), pki.client, CLOCK)
    with pytest.raises(UnreachableError, match="cannot be reached"):
        await connector.connect()


async def no_session(link: Link) -> None:
    await link.receive()


async def refused_by(
    connector: TcpConnector, *, kind: type[ReplicatorError] = IdentityError
) -> ReplicatorError:
    """The refusal, wherever TLS lets it come up: at connecting, or at the first read."""

    async def greet_once() -> None:
        link = await connector.connect()
        try:
            link.send(HELLO)
            await link.receive()
        finally:
            link.close()
            await link.wait_closed()

    with pytest.raises(kind) as caught:
        await greet_once()
    return caught.value


async def test_a_receiver_of_another_ca_is_refused(pki: Pki) -> None:
    other = trustme.CA()
    tls = server_context(pki.ca_file, *pki.issue(HOST, by=other))
    server = await serve_wire(Address(HOST, 0), lambda: tls, no_session, clock=CLOCK)
    error = await refused_by(TcpConnector(Address(HOST, server.port), pki.client, CLOCK))
    assert "refused" in error.message
    server.close()
    await server.wait_closed()


async def test_a_receiver_with_another_name_is_refused(pki: Pki) -> None:
    tls = server_context(pki.ca_file, *pki.issue("elsewhere.example"))
    server = await serve_wire(Address(HOST, 0), lambda: tls, no_session, clock=CLOCK)
    error = await refused_by(TcpConnector(Address(HOST, server.port), pki.client, CLOCK))
    assert "[receiver] address" in error.hint
    server.close()
    await server.wait_closed()


async def test_an_agent_of_another_ca_is_refused_in_words(pki: Pki) -> None:
    server = await serve_wire(Address(HOST, 0), pki.server, no_session, clock=CLOCK)
    tls = client_context(pki.ca_file, *pki.issue("agent-1", by=trustme.CA()))
    error = await refused_by(TcpConnector(Address(HOST, server.port), lambda: tls, CLOCK))
    assert "our certificate" in error.message
    server.close()
    await server.wait_closed()


async def test_an_agent_without_tls_1_3_gets_nowhere(pki: Pki) -> None:
    server = await serve_wire(Address(HOST, 0), pki.server, no_session, clock=CLOCK)
    tls = pki.client()
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    connector = TcpConnector(Address(HOST, server.port), lambda: tls, CLOCK)
    await refused_by(connector, kind=UnreachableError)
    server.close()
    await server.wait_closed()


def test_missing_and_broken_files_are_named(pki: Pki, tmp_path: Path) -> None:
    crt, key = pki.issue("agent-1")
    with pytest.raises(UsageError, match=r"gone\.crt"):
        client_context(tmp_path / "gone.crt", crt, key)
    (tmp_path / "empty").write_text("nothing")
    with pytest.raises(IdentityError, match="no CA certificate"):
        client_context(tmp_path / "empty", crt, key)
    with pytest.raises(IdentityError, match="no certificate and its key"):
        server_context(pki.ca_file, crt, tmp_path / "empty")


async def test_a_taken_port_is_one_sentence(pki: Pki) -> None:
    server = await serve_wire(Address(HOST, 0), pki.server, no_session, clock=CLOCK)
    with pytest.raises(OwnedError, match="another program"):
        await serve_wire(Address(HOST, server.port), pki.server, no_session, clock=CLOCK)
    server.close()
    await server.wait_closed()


async def test_a_stranger_to_the_protocol_loses_its_connection(pki: Pki) -> None:
    outcome: list[ReplicatorError] = []

    async def session(link: Link) -> None:
        try:
            await link.receive()
        except ReplicatorError as error:
            outcome.append(error)

    server = await serve_wire(Address(HOST, 0), pki.server, session, clock=CLOCK)
    reader, writer = await asyncio.open_connection(HOST, server.port, ssl=pki.client())
    writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
    with_error = await reader.read()
    assert with_error[3] == 3  # an ERROR message, then the end
    writer.close()
    await writer.wait_closed()
    assert "cannot be understood" in outcome[0].message
    server.close()
    await server.wait_closed()
