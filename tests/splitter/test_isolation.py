# SPDX-License-Identifier: Apache-2.0
"""At the splitter too one group's trouble is that group's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import NoReturn

import pytest

from agent.splitter.group import GroupLog
from replicator.base.errors import NotFoundError, ReplicatorError, UnreachableError
from replicator.base.storage import SystemStorage
from replicator.control.splitter import (
    OpenStream,
    Reload,
    Reloaded,
    SplitterGroupStatus,
    StreamOpened,
)
from tests.peers.nbd_client import NbdError
from tests.splitter.daemon import SIZE, Home, agent, connect, home, splitter, stop
from tests.splitter.rig import image
from tests.splitter.test_service import serving

BLOCK = b"x" * 4096
OTHER = """
[[group]]
name = "other"
driver = "external"
checkpoint_interval = "100ms"
[[group.disk]]
name = "a"
size = "16MiB"
"""


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        made.config.write_text(made.config.read_text() + OTHER)
        yield made


def lost(status: SplitterGroupStatus) -> bool:
    return status.state == "lost"


@pytest.mark.parametrize(
    ("spoil", "said"), [("garbage", "ext.json: JSON is malformed"), ("directory", "Is a directory")]
)
async def test_a_state_file_that_cannot_be_read_keeps_only_its_group_from_starting(
    place: Home, spoil: str, said: str
) -> None:
    state = place.path / "state" / "splitter" / "ext.json"
    state.parent.mkdir(parents=True)
    if spoil == "garbage":
        state.write_bytes(b"\0" * 40)
    else:
        state.mkdir()
    with splitter(place) as child:
        async with agent(place) as one:
            async with await connect(place, "other/a") as disk:
                await disk.pwrite(BLOCK, offset=8192)
            other = await one.until("other", lambda group: group.held_until_ns > 0)
            assert other.state == "ready"
            ext = await one.until("ext", lost)
            assert said in ext.reason
            with pytest.raises(NotFoundError):
                await connect(place, "ext/a")
            with pytest.raises(ReplicatorError, match=re.escape(said)):
                await one.ask(
                    lambda n: OpenStream(id=n, group="ext", above_ordinal=0, reason="x"),
                    StreamOpened,
                )
        assert stop(child) == 0
    assert "Traceback" not in place.log.read_text()
    assert image(place.records("other", other.end_lsn), 0, SIZE)[8192:12288] == BLOCK


def bug(_self: GroupLog, *_args: object) -> NoReturn:
    raise KeyError("a fault of the program")


@pytest.mark.parametrize("step", ["tick", "take", "begin"])
async def test_a_fault_of_the_program_ends_the_stream_of_its_group_alone(
    place: Home, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    sound = getattr(GroupLog, step)
    armed = asyncio.Event()

    def spoiled(self: GroupLog, *args: object) -> object:
        if self.settings.name == "ext" and (step == "begin" or armed.is_set()):
            bug(self)
        return sound(self, *args)

    monkeypatch.setattr(GroupLog, step, spoiled)
    async with serving(place, SystemStorage(), sticky=False), agent(place) as one:
        if step != "begin":
            await one.until("ext", lambda group: group.state == "ready")
        armed.set()
        if step == "take":
            client = await connect(place, "ext/a")
            with pytest.raises((UnreachableError, NbdError)):
                await client.pwrite(BLOCK, offset=0)
            client.abort()
        ext = await one.until("ext", lost)
        assert ext.reason == "unexpected KeyError: 'a fault of the program'"
        async with await connect(place, "other/a") as disk:
            for number in range(50):
                await disk.pwrite(BLOCK, offset=number * 4096)
        other = await one.until("other", lambda group: group.held_until_ns > 0)
        assert other.state == "ready"
    assert image(place.records("other", other.end_lsn), 0, SIZE)[: 50 * 4096] == BLOCK * 50


async def test_a_new_group_that_a_fault_meets_as_it_begins_keeps_no_other_from_coming(
    place: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = GroupLog.begin

    def spoiled(self: GroupLog, *args: object) -> object:
        return bug(self) if self.settings.name == "bad" else sound(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(GroupLog, "begin", spoiled)
    async with serving(place, SystemStorage(), sticky=False), agent(place) as one:
        await one.until("ext", lambda group: group.state == "ready")
        bad, new = (OTHER.replace('"other"', f'"{name}"') for name in ("bad", "new"))
        place.config.write_text(place.config.read_text() + bad + new)
        await one.ask(lambda n: Reload(id=n), Reloaded)
        found = await one.until("bad", lost)
        assert found.reason == "unexpected KeyError: 'a fault of the program'"
        async with await connect(place, "new/a") as disk:
            await disk.pwrite(BLOCK, offset=0)
        await one.until("new", lambda group: group.last_cut_time_ns > 0)
