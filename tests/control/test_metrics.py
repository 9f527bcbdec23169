# SPDX-License-Identifier: Apache-2.0
"""/metrics over TCP."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Counter

from replicator.base.address import Address
from replicator.base.errors import OwnedError
from replicator.control.server import serve_metrics


def fetch(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
        text: str = response.read().decode()
    return text


async def test_the_registry_is_served_as_it_stands() -> None:
    registry = CollectorRegistry()
    sent = Counter("replicator_sent_bytes", "Bytes sent.", registry=registry)
    server = await serve_metrics(Address("127.0.0.1", 0), registry)
    port = server.addresses()[0][1]
    sent.inc(7)
    assert "replicator_sent_bytes_total 7.0" in await asyncio.to_thread(fetch, port, "/metrics")
    sent.inc(1)
    assert "replicator_sent_bytes_total 8.0" in await asyncio.to_thread(fetch, port, "/metrics")
    with pytest.raises(urllib.error.HTTPError) as caught:
        await asyncio.to_thread(fetch, port, "/v1/status")
    caught.value.close()
    await server.close()
    assert caught.value.code == 404


async def test_what_is_not_http_costs_a_short_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    server = await serve_metrics(Address("127.0.0.1", 0), CollectorRegistry())
    reader, writer = await asyncio.open_connection(*server.addresses()[0])
    writer.write(b"GET / HTTP/1.1\r\n" + b"secret: 1\r\n" * 10_000 + b"\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    await server.close()
    (line,) = caplog.records
    assert (line.levelname, line.exc_info) == ("WARNING", None)
    assert line.getMessage() == "a request that is not HTTP was refused"


async def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OwnedError, match=f"cannot serve metrics at 127.0.0.1:{port}: "):
            await serve_metrics(Address("127.0.0.1", port), CollectorRegistry())
