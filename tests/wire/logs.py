# SPDX-License-Identifier: Apache-2.0
"""Logs and greetings to test with. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from journal.record import NO_DISK, RecordType, encode_header, first_chain
from replicator.wire.messages import Hello, OfferedDisk, Open, Opened, Welcome
from replicator.wire.protocol import Role, State, WireProtocol
from tests.wire.exchange import exchange

STREAM = UUID("11111111-2222-3333-4444-555555555555")
INSTANCE = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


@dataclass
class Log:
    """A log that grows in memory, with the chain at each record's end."""

    start_lsn: int = 0
    chain: int = field(default_factory=lambda: first_chain(STREAM, 1))
    data: bytearray = field(default_factory=bytearray)
    chains: dict[int, int] = field(default_factory=dict)
    sequence: int = 0

    def __post_init__(self) -> None:
        self.chains[self.start_lsn] = self.chain

    @property
    def end_lsn(self) -> int:
        return self.start_lsn + len(self.data)

    def append(
        self,
        kind: RecordType,
        payload: bytes = b"",
        *,
        disk: int = NO_DISK,
        offset: int = 0,
        length: int = 0,
    ) -> int:
        header, self.chain = encode_header(
            kind, disk, offset, length, self.sequence, 1, payload, 0, self.chain
        )
        self.sequence += 1
        self.data += header + payload
        self.chains[self.end_lsn] = self.chain
        return self.end_lsn

    def write(self, disk: int, offset: int, payload: bytes) -> int:
        return self.append(RecordType.WRITE, payload, disk=disk, offset=offset, length=len(payload))

    def zero(self, disk: int, offset: int, length: int) -> int:
        return self.append(RecordType.ZERO, disk=disk, offset=offset, length=length)


HELLO = Hello("agent-1", INSTANCE, "g", "external", 0, [OfferedDisk("d", 1 << 20)])
WELCOME = Welcome("receiver-1", 0, None, 0, 0, 0, 0, 0, 1)
OPEN = Open(str(STREAM), 1, 0, first_chain(STREAM, 1))


def ends() -> tuple[WireProtocol, WireProtocol]:
    return (
        WireProtocol(Role.AGENT, peer_name="the receiver", now_ns=0),
        WireProtocol(Role.RECEIVER, peer_name="the agent", now_ns=0),
    )


def streaming() -> tuple[WireProtocol, WireProtocol]:
    """Both ends, ready for frames."""
    agent, receiver = ends()
    for speaker, message in (
        (agent, HELLO),
        (receiver, WELCOME),
        (agent, OPEN),
        (receiver, Opened(0)),
    ):
        speaker.send(message)
        exchange(agent, receiver)
        (agent if speaker is receiver else receiver).events_received()
    assert agent.state is receiver.state is State.STREAMING
    return agent, receiver
