# SPDX-License-Identifier: Apache-2.0
"""Peers that have not proved anything: what they get, what they cost, whom they keep out."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from replicator.base.errors import ReplicatorError
from replicator.base.units import MIB
from replicator.wire.doorway import MAX_HANDSHAKES
from replicator.wire.framing import MAGIC
from replicator.wire.messages import MessageType, Welcome
from tests.receiver_service.dr_site import DrSite, ReceiverProcess, launched
from tests.receiver_service.source import Source

CLIENT_HELLO_BEGINNING = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(60)
STRANGERS = 300


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


@pytest.fixture
async def process(site: DrSite) -> AsyncIterator[ReceiverProcess]:
    async with launched(site) as process:
        yield process


def resident_bytes(process: ReceiverProcess) -> int:
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def open_sockets(process: ReceiverProcess) -> int:
    folder = f"/proc/{process.process.pid}/fd"
    count = 0
    for name in os.listdir(folder):
        try:
            count += os.readlink(f"{folder}/{name}").startswith("socket:")
        except FileNotFoundError:
            continue
    return count


async def knock(site: DrSite, stack: AsyncExitStack, opening: bytes) -> asyncio.StreamReader:
    """A TCP connection that says `opening`, and stays until `stack` ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    stack.callback(writer.close)
    writer.write(opening)
    return reader


async def test_hundreds_of_dawdlers_cost_little_and_keep_no_agent_out(
    site: DrSite, process: ReceiverProcess
) -> None:
    agent = await site.agent()
    await agent.welcomed("web")
    await agent.close()
    memory, sockets = resident_bytes(process), open_sockets(process)
    async with AsyncExitStack() as stack:
        for _ in range(STRANGERS):
            await knock(site, stack, CLIENT_HELLO_BEGINNING)
        agent = await site.agent()
        assert (await agent.welcomed("web")).receiver == "dr"
        assert open_sockets(process) - sockets <= MAX_HANDSHAKES + 2
        assert resident_bytes(process) - memory < 40 * MIB
        await agent.close()


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack("<HBBIQ", MAGIC, 1, MessageType.HELLO, 64, 0) + bytes(64),  # plain text
        bytes(5000),
    ],
)
async def test_what_is_no_tls_is_hung_up_on(
    site: DrSite, process: ReceiverProcess, opening: bytes
) -> None:
    async with AsyncExitStack() as stack, asyncio.timeout(5):
        reader = await knock(site, stack, opening)
        answer = b""
        with suppress(ConnectionResetError):
            answer = await reader.read()  # up to the end: at most a TLS alert
        assert len(answer) < 100
        assert b"dr" not in answer
    agent = await site.agent()
    await agent.welcomed("web")
    await agent.close()
    assert process.process.returncode is None


@pytest.mark.usefixtures("process")
async def test_a_greeting_larger_than_its_bound_is_refused_unread(site: DrSite) -> None:
    tls = site.pki.client("kvm1")
    reader, writer = await asyncio.open_connection("localhost", site.port, ssl=tls)
    writer.write(struct.pack("<HBBIQ", MAGIC, 1, MessageType.HELLO, 16 * 1024 + 1, 0))
    async with asyncio.timeout(5):
        answer = await reader.read()
    assert answer[3] == MessageType.ERROR
    writer.close()


@pytest.mark.usefixtures("process")
async def test_a_frame_before_the_hello_is_out_of_turn(site: DrSite) -> None:
    tls = site.pki.client("kvm1")
    source = Source({"vda": 4096})
    source.start_from_zero()
    (frame, *_) = source.frames(0)
    reader, writer = await asyncio.open_connection("localhost", site.port, ssl=tls)
    body = frame.header.pack() + bytes(frame.data)
    writer.write(struct.pack("<HBBIQ", MAGIC, 1, MessageType.FRAME, len(body), 0) + body)
    async with asyncio.timeout(5):
        answer = await reader.read()
    assert answer[3] == MessageType.ERROR
    writer.close()


async def test_garbage_after_the_hello_ends_that_session_alone(
    site: DrSite, process: ReceiverProcess
) -> None:
    tls = site.pki.client("kvm1")
    agent = await site.agent()
    await agent.welcomed("web")
    reader, writer = await asyncio.open_connection("localhost", site.port, ssl=tls)
    writer.write(os.urandom(20_000))
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()
    source = Source({"vda": 65536})
    source.start_from_zero()
    source.write("vda", 0, b"x" * 512)
    source.cut()
    await agent.open(source)
    await agent.ship(source, 0)
    await agent.close()
    assert process.process.returncode is None


async def test_refusals_are_logged_with_the_peer_and_without_secrets(
    site: DrSite, process: ReceiverProcess
) -> None:
    agent = await site.agent("kvm9")
    agent.greet("web", agent="kvm9")
    with pytest.raises(ReplicatorError):
        await agent.expect(Welcome)
    await agent.close()
    async with AsyncExitStack() as stack:
        reader = await knock(site, stack, b"no TLS at all, and more than a header's length")
        with suppress(ConnectionResetError):
            await reader.read()
    await process.end(signal.SIGTERM)
    log = "".join(process.log)
    (refusal,) = (line for line in log.splitlines() if "event=agent.refused" in line)
    assert "reason=identity" in refusal
    assert "peer=127.0.0.1:" in refusal
    assert 'event="TLS handshake failed"' in log
    assert "BEGIN" not in log
    assert "PRIVATE" not in log
