# SPDX-License-Identifier: Apache-2.0
"""What is different between two files, and what of it needs a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.config import load_any
from replicator.config.changes import Change, changes, in_force

AGENT = """
[agent]
name = "kvm1"
[splitter]
max_stall = "2s"
[receiver]
address = "dr"
[[group]]
name = "web"
[[group.disk]]
domain = "web"
target = "vda"
[[group]]
name = "ext"
driver = "external"
[[group.disk]]
name = "d"
size = "1GiB"
"""
RECEIVER = """
[receiver]
name = "dr"
data_dir = "/data"
[history]
max_bytes = "1GiB"
keep = ["all 1h", "1min 24h"]
[[group]]
name = "web"
agents = ["kvm1"]
"""


def between(folder: Path, text: str, *edits: tuple[str, str]) -> list[Change]:
    (folder / "old.toml").write_text(text)
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "new.toml").write_text(text)
    return changes(load_any(folder / "old.toml"), load_any(folder / "new.toml"))


@pytest.mark.parametrize("text", [AGENT, RECEIVER])
def test_the_same_file_has_no_changes(tmp_path: Path, text: str) -> None:
    assert between(tmp_path, text) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('max_stall = "2s"', 'max_stall = "1500ms"', 'splitter.max_stall: "2s" → "1500ms"'),
        ('name = "kvm1"', 'name = "kvm2"', 'agent.name: "kvm1" → "kvm2", after a restart'),
        ('address = "dr"', 'address = "dr2"', 'receiver.address: "dr:4433" → "dr2:4433"'),
        (
            'max_stall = "2s"',
            'max_stall = "2s"\nspool_disk_dir = "/spool"',
            'splitter.spool_disk_dir: "/var/spool/replicator" → "/spool", after a restart',
        ),
        (
            'name = "web"\n[[group.disk]]',
            'name = "web"\ncheckpoint_interval = "5s"\n[[group.disk]]',
            'group web.checkpoint_interval: "1s" → "5s"',
        ),
        (
            'name = "web"\n[[group.disk]]',
            'name = "web"\nmark_every = "1h"\n[[group.disk]]',
            'group web.mark_every: nothing → "1h"',
        ),
        (
            'target = "vda"\n',
            'target = "vda"\n[[group.disk]]\ndomain = "web"\ntarget = "vdb"\n',
            "group web, disk web-vdb: added",
        ),
        ('target = "vda"', 'target = "vdz"', "group web, disk web-vda: removed"),
        ('size = "1GiB"', 'size = "2GiB"', "group ext, disk d.size: "),
        ('name = "ext"', 'name = "other"', "group ext: removed"),
    ],
)
def test_a_change_at_the_agent_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    found = between(tmp_path, AGENT, (old, new))
    assert str(found[0]).startswith(said)
    assert ("after a restart" in str(found[0])) == (not found[0].live)
    assert len(found) <= 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('max_bytes = "1GiB"', 'max_bytes = "2GiB"', 'history.max_bytes: "1GiB" → "2GiB"'),
        (
            '"1min 24h"]',
            '"1min 24h", "1h 7d"]',
            'history.keep: ["all 1h", "1min 1d"] → ["all 1h", "1min 1d", "1h 7d"]',
        ),
        ('data_dir = "/data"', 'data_dir = "/d"', 'receiver.data_dir: "/data" → "/d", after a res'),
        ('["kvm1"]', '["kvm1", "kvm2"]', 'group web.agents: ["kvm1"] → ["kvm1", "kvm2"]'),
        (
            'agents = ["kvm1"]\n',
            'agents = ["kvm1"]\n[group.history]\nmin_lock = "1h"\n',
            'group web.history.min_lock: nothing → "1h"',
        ),
        (
            'agents = ["kvm1"]\n',
            'agents = ["kvm1"]\n[[group]]\nname = "db"\nagents = ["kvm1"]\n',
            "group db: added",
        ),
    ],
)
def test_a_change_at_the_receiver_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    (found,) = between(tmp_path, RECEIVER, (old, new))
    assert str(found).startswith(said)


def test_what_waits_for_a_restart_is_not_in_force_and_is_said_again(tmp_path: Path) -> None:
    for text, edits, late in (
        (
            AGENT,
            (
                ('name = "kvm1"', 'name = "kvm2"'),
                ('max_stall = "2s"', 'max_stall = "1s"\nspool_disk_dir = "/spool"'),
                ('size = "1GiB"', 'size = "2GiB"'),
                ('name = "web"\n[[group.disk]]', 'name = "web"\nmark_every = "1h"\n[[group.disk]]'),
            ),
            {"agent.name", "splitter.spool_disk_dir", "group ext, disk d.size"},
        ),
        (
            RECEIVER,
            (('data_dir = "/data"', 'data_dir = "/d"'), ('"1GiB"', '"2GiB"')),
            {"receiver.data_dir"},
        ),
    ):
        (tmp_path / "old.toml").write_text(text)
        between(tmp_path, text, *edits)
        old, new = load_any(tmp_path / "old.toml"), load_any(tmp_path / "new.toml")
        live = {each.place for each in changes(old, new) if each.live}
        assert live
        held = in_force(old, new)  # type: ignore[type-var]
        assert {each.place for each in changes(old, held)} == live
        assert {each.place for each in changes(held, new)} == late


def test_what_makes_a_group_another_one_needs_a_restart(tmp_path: Path) -> None:
    found = between(
        tmp_path,
        AGENT,
        ('name = "ext"\ndriver = "external"', 'name = "ext"'),
        ('name = "d"\nsize = "1GiB"', 'domain = "ext"\ntarget = "vda"'),
    )
    assert [(each.place, each.live) for each in found] == [
        ("group ext.driver", False),
        ("group ext, disk d", True),
        ("group ext, disk ext-vda", True),
    ]


def test_keys_that_were_written_otherwise_are_the_same(tmp_path: Path) -> None:
    assert between(tmp_path, AGENT, ('max_stall = "2s"', 'max_stall = "2000ms"')) == []
