# SPDX-License-Identifier: Apache-2.0
"""A group in the agent without its processes: what may change between two of its steps."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from agent.drivers.external import ExternalHost
from agent.group.group import GroupAgent, Surroundings
from agent.links.splitter_link import SplitterLink
from agent.memory import AgentMemory
from replicator.base.address import Address
from replicator.base.clock import NS_PER_S, SystemClock
from replicator.base.errors import UnreachableError
from replicator.base.storage import SystemStorage
from replicator.config.agent import load_agent
from replicator.wire.transport import TcpConnector
from tests.agent.test_group_state import GROUP
from tests.base.test_clock import SteppedClock

CONFIG = """
[agent]
name = "kvm1"
state_dir = "{folder}/state"
[splitter]
control = "{folder}/control"
spool_memory_dir = "{folder}/memory"
spool_disk_dir = "{folder}/disk"
spool_memory = "1MiB"
spool_disk = "1MiB"
[receiver]
address = "127.0.0.1:1"
[[group]]
name = "g"
driver = "external"
[[group.disk]]
name = "d"
size = "1GiB"
"""


def no_tls() -> ssl.SSLContext:
    raise AssertionError("nothing connects here")


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Surroundings]:
    file = tmp_path / "agent.toml"
    file.write_text(CONFIG.format(folder=tmp_path))
    config, storage = load_agent(file), SystemStorage()
    with ThreadPoolExecutor(1) as pool:
        yield Surroundings(
            config=config,
            storage=storage,
            clock=SystemClock(),
            memory=AgentMemory(storage, config.agent.state_dir),
            instance="i",
            splitter=SplitterLink(config.splitter.control, lambda _: None),
            connector=TcpConnector(Address("127.0.0.1", 1), no_tls, SystemClock()),
            pool=pool,
        )


def group_of(around: Surroundings) -> GroupAgent:
    return GroupAgent(around, around.config.groups[0], ExternalHost())


async def test_a_splitter_that_goes_while_a_resync_waits_its_turn_is_said(
    around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = group_of(around)
    group.publish(GROUP)
    monkeypatch.setattr(group.link, "readmit", lambda: group.publish(None))
    with pytest.raises(UnreachableError, match="group 'g' has no splitter"):
        await asyncio.wait_for(group.resync(), 10)


async def test_a_spool_that_was_given_more_room_lasts_longer(around: Surroundings) -> None:
    clock = SteppedClock()
    group = group_of(replace(around, clock=clock))
    group.publish(msgspec.structs.replace(GROUP, memory_bytes=1 << 20))
    clock.run(60 * NS_PER_S)
    assert "the spool has room for 1 MiB" in group.verdict().reason
    file = around.config.agent.state_dir.parent / "agent.toml"
    file.write_text(file.read_text().replace('"1MiB"', '"4MiB"'))
    group.reload(replace(around, config=load_agent(file), clock=clock))
    assert "the spool has room for 7 MiB" in group.verdict().reason
