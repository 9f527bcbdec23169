# SPDX-License-Identifier: Apache-2.0
"""Source, shipper and receiver joined without a socket: a test decides what happens when."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from agent.memory import AgentMemory
from agent.shipping.resume import Fenced, Paused, Plan
from agent.shipping.shipper import Shipper
from replicator.base.storage import SystemStorage
from replicator.wire.messages import Message
from tests.agent.fake_receiver import FakeReceiver
from tests.agent.source import Source


@dataclass
class World:
    """`up`: what was produced and is on its way to the receiver; `down`: its answers."""

    path: Path
    disks: list[tuple[str, int]]
    window_bytes: int = 1 << 20
    frame_bytes: int = 64 << 10
    receiver: FakeReceiver = field(default_factory=FakeReceiver)
    up: deque[Message] = field(default_factory=deque)
    down: deque[Message] = field(default_factory=deque)
    connected: bool = False
    splitter_up: bool = True

    def __post_init__(self) -> None:
        self.storage = SystemStorage()
        self.directories = [self.path / "memory" / "g", self.path / "disk" / "g"]
        self.source = Source(self.storage, self.directories, self.disks, segment_bytes=256 << 10)
        self.shipper = self.new_shipper()

    def new_shipper(self) -> Shipper:
        memory = AgentMemory(self.storage, self.path / "state")
        return Shipper(
            self.storage,
            self.directories,
            "g",
            memory,
            window_bytes=self.window_bytes,
            frame_bytes=self.frame_bytes,
        )

    def restart_agent(self) -> None:
        """As a kill -9: nothing of the old one is asked, nothing in flight arrives."""
        self.disconnect()
        self.shipper = self.new_shipper()

    def connect(self) -> Plan | Fenced | Paused:
        self.disconnect()
        self.publish()
        decided = self.shipper.welcome(self.receiver.welcome())
        self.connected = isinstance(decided, Plan)
        return decided

    def disconnect(self) -> None:
        self.up.clear()
        self.down.clear()
        self.shipper.disconnected()
        self.connected = False

    def publish(self) -> None:
        self.shipper.publish(self.source.status() if self.splitter_up else None)

    def produce(self, max_bytes: int = 1 << 20) -> bool:
        self.publish()
        messages = self.shipper.produce(max_bytes)
        self.up.extend(messages)
        return bool(messages)

    def deliver_up(self) -> bool:
        if not self.up:
            return False
        self.down.extend(self.receiver.receive(self.up.popleft()))
        return True

    def receiver_takes_all(self) -> list[Message]:
        """What it answers, which is not delivered."""
        while self.deliver_up():
            pass
        answers, self.down = list(self.down), deque()
        return answers

    def deliver_down(self) -> bool:
        if not self.down:
            return False
        self.shipper.receive(self.down.popleft())
        return True

    def pump(self) -> None:
        """Until nobody has anything to say."""
        if not self.connected:
            assert isinstance(self.connect(), Plan)
        moving = True
        while moving:
            moving = self.produce()
            while self.deliver_up() or self.deliver_down():
                moving = True

    def check_points(self) -> None:
        """Every point is the source's content at its cut."""
        for point in self.receiver.points:
            assert self.receiver.images[point.sequence] == self.source.images[point.lsn]
