# SPDX-License-Identifier: Apache-2.0
"""NBD URIs, there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.errors import UsageError
from replicator.nbd.uri import TcpAddress, UnixAddress
from tests.peers.nbd_uri import Address, parse_uri


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("nbd+unix:///disk?socket=/run/s", UnixAddress(Path("/run/s"), "disk")),
        ("nbd+unix:///web/vda?socket=sock", UnixAddress(Path("sock"), "web/vda")),
        ("nbd+unix:////web?socket=/s", UnixAddress(Path("/s"), "/web")),
        ("nbd+unix:///?socket=/s", UnixAddress(Path("/s"), "")),
        ("nbd+unix:///hello%20world?socket=/a%26b", UnixAddress(Path("/a&b"), "hello world")),
        ("nbd://example.com/disk", TcpAddress("example.com", 10809, "disk")),
        ("nbd://example.com", TcpAddress("example.com", 10809, "")),
        ("nbd://[::1]:99/d", TcpAddress("::1", 99, "d")),
    ],
)
def test_what_is_understood(text: str, address: Address) -> None:
    assert parse_uri(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "disk",
        "http://example.com/disk",
        "nbds://example.com/disk",
        "nbd+unix:///disk",
        "nbd+unix:///disk?socket=",
        "nbd+unix://host/disk?socket=/s",
        "nbd+unix:///disk?socket=/s&tls-type=psk",
        "nbd:///disk",
        "nbd://host:port/disk",
        "nbd://host/disk?socket=/s",
        "nbd://host/disk?nonsense",
    ],
)
def test_what_is_not_understood_says_what_is(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri(text)
    assert "nbd+unix:///EXPORT?socket=PATH" in caught.value.hint


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@given(names, names.map(lambda name: "/" + name))
def test_every_unix_address_survives_its_text(export: str, socket: str) -> None:
    address = UnixAddress(Path(socket), export)
    assert parse_uri(str(address)) == address


@given(st.sampled_from(["localhost", "10.0.0.1", "fe80::1"]), st.integers(1, 65535), names)
def test_every_tcp_address_survives_its_text(host: str, port: int, export: str) -> None:
    address = TcpAddress(host, port, export)
    assert parse_uri(str(address)) == address
