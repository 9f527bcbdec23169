# SPDX-License-Identifier: Apache-2.0
"""A small agent built on replicator.wire: says what a test tells it to, and gathers the answers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import NAMESPACE_DNS, uuid4, uuid5

import trustme

from replicator.base.address import Address
from replicator.base.clock import SystemClock
from replicator.wire.link import Link
from replicator.wire.messages import Ack, Hello, Message, OfferedDisk, Open, Opened, Point, Welcome
from replicator.wire.transport import TcpConnector
from tests.receiver_service.source import Source

T = TypeVar("T", bound=Message)


class Pki:
    """A CA, a receiver's certificate for localhost, and agents' certificates on demand."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.folder = folder
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.certificate, self.key = self.issue("localhost", "dr")

    def issue(self, *names: str, authority: trustme.CA | None = None) -> tuple[Path, Path]:
        issued = (authority or self.authority).issue_cert(*names)
        stem = f"{names[0] if names else 'nameless'}-{uuid4().hex[:6]}"
        certificate, key = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        issued.private_key_pem.write_to_path(str(key))
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(certificate), append=number > 0)
        return certificate, key

    def client(self, *names: str, authority: trustme.CA | None = None) -> ssl.SSLContext:
        """A TLS context with a certificate for `names`; none at all without names."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if names:
            context.load_cert_chain(*self.issue(*names, authority=authority))
        return context


def identity_of(agent: str) -> str:
    """That of its state directory: the same whenever it comes back."""
    return str(uuid5(NAMESPACE_DNS, agent))


class FakeAgent:
    """One connection. `received` holds every message that was taken, in order."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.received: list[Message] = []

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext) -> FakeAgent:
        connector = TcpConnector(Address("localhost", port), lambda: tls, SystemClock())
        return cls(await connector.connect())

    def greet(
        self,
        group: str,
        *,
        agent: str = "kvm1",
        instance: str | None = None,
        disks: dict[str, int] | None = None,
        protocol: int = 1,
    ) -> None:
        offered = [OfferedDisk(name, size) for name, size in (disks or {}).items()]
        self.link.send(
            Hello(agent, instance or identity_of(agent), group, "external", 0, offered, protocol)
        )

    async def expect(self, kind: type[T], wanted: Callable[[T], bool] = lambda _: True) -> T:
        """The next message of that kind for which `wanted` holds; raises when the link ends."""
        async with asyncio.timeout(30):
            while True:
                message = await self.link.receive()
                self.received.append(message)
                if isinstance(message, kind) and wanted(message):
                    return message

    async def welcomed(self, group: str, **hello: object) -> Welcome:
        self.greet(group, **hello)  # type: ignore[arg-type]
        return await self.expect(Welcome)

    async def open(self, source: Source, lsn: int | None = None) -> Opened:
        start = source.first_lsn if lsn is None else lsn
        self.link.send(Open(str(source.stream), source.ordinal, start, source.chain_at(start)))
        return await self.expect(Opened)

    async def ship(self, source: Source, start_lsn: int, *, end_lsn: int | None = None) -> None:
        """All of the log from `start_lsn` on; returns when it is acknowledged as durable."""
        frames = source.frames(start_lsn, end_lsn=end_lsn)
        for frame in frames:
            self.link.send(frame)
            await self.link.drain()
        end = frames[-1].header.end_lsn
        await self.expect(Ack, lambda ack: ack.durable_lsn >= end)

    async def applied(self, lsn: int) -> None:
        """Returns when everything below `lsn` is applied."""
        for message in reversed(self.received):
            if isinstance(message, Ack):
                if message.applied_lsn >= lsn:
                    return
                break
        await self.expect(Ack, lambda ack: ack.applied_lsn >= lsn)

    def points(self) -> list[Point]:
        """All that were acknowledged on this connection."""
        return [p for m in self.received if isinstance(m, Ack) for p in m.points]

    async def close(self) -> None:
        self.link.close()
        await self.link.wait_closed()
