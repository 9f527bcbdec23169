# SPDX-License-Identifier: Apache-2.0
"""Config files: the samples that ship, what is filled in, and what each mistake gets."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.address import Address
from replicator.base.errors import UsageError
from replicator.base.units import GIB
from replicator.config import (
    AgentConfig,
    ConfigError,
    ReceiverConfig,
    load_agent,
    load_any,
    load_receiver,
)
from replicator.config.decode import decode
from replicator.config.values import KeepRule

ROOT = Path(__file__).parents[2]
INVALID = tomllib.loads((Path(__file__).parent / "samples/invalid.toml").read_text())["case"]
HOUR_NS = 3600 * 10**9
LEAST_AGENT = '[receiver]\naddress = "dr.example.net"\n'


def write(folder: Path, text: str | bytes) -> Path:
    file = folder / "config.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_the_agents_sample_says_what_it_seems_to_say() -> None:
    config = load_agent(ROOT / "deploy/agent.toml")
    assert config.agent.name == "kvm1"
    assert config.splitter.socket_group == "kvm"
    assert config.receiver.address == Address("dr.example.net", 4433)
    shop, lab = config.groups
    assert [disk.disk_name for disk in shop.disks] == ["shop-db-vda", "shop-db-vdb", "shop-web-vda"]
    assert (shop.driver, shop.checkpoint_interval_ns) == ("libvirt", 10**9)
    assert (lab.driver, lab.checkpoint_interval_ns) == ("external", 5 * 10**8)
    assert (lab.disks[0].disk_name, lab.disks[0].size_bytes) == ("scratch", 10 * GIB)


def test_the_receivers_sample_says_what_it_seems_to_say() -> None:
    config = load_receiver(ROOT / "deploy/receiver.toml")
    assert config.receiver.name == "dr1"
    assert config.receiver.listen == Address("0.0.0.0", 4433)
    assert config.history.max_bytes == 200 * GIB
    assert [(group.name, group.agents) for group in config.groups] == [
        ("shop", ("kvm1", "kvm2")),
        ("lab", ("kvm1",)),
    ]
    shop, lab = (config.history_of(group) for group in config.groups)
    assert shop == config.history
    assert shop.span_ns == 30 * 24 * HOUR_NS
    assert (lab.max_bytes, lab.span_ns) == (20 * GIB, 2 * HOUR_NS)
    assert lab.when_full == "thin"


@pytest.mark.parametrize("name", ["agent", "receiver"])
def test_a_sample_shows_the_defaults_it_claims_to_show(name: str, tmp_path: Path) -> None:
    """Uncommenting every default changes nothing."""
    sample = ROOT / f"deploy/{name}.toml"
    lines = []
    shown = 0
    for line in sample.read_text().splitlines():
        key = line.removeprefix("# ").split(" = ")[0]
        is_default = line.startswith("# ") and " = " in line and key.isidentifier()
        lines.append(line.removeprefix("# ") if is_default else line)
        shown += is_default
    assert shown >= 6
    assert load_any(write(tmp_path, "\n".join(lines))) == load_any(sample)


def test_everything_that_can_have_a_default_has_one(tmp_path: Path) -> None:
    agent = load_agent(write(tmp_path, LEAST_AGENT))
    assert agent.agent.name == socket.gethostname()
    assert agent.agent.metrics.address is None
    assert agent.receiver.address == Address("dr.example.net", 4433)
    assert agent.splitter.max_stall_ns == 2 * 10**9
    assert agent.splitter.socket_mode == 0o660
    receiver = load_receiver(write(tmp_path, ""))
    assert receiver.history.keep == (KeepRule(0, HOUR_NS), KeepRule(60 * 10**9, 24 * HOUR_NS))
    assert receiver.groups == ()


def test_relative_paths_are_relative_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    write(tmp_path / "etc", '[receiver]\ndata_dir = "data"\nkey = "/abs/key"\n')
    monkeypatch.chdir(tmp_path)
    config = load_receiver(Path("etc/config.toml"))
    assert config.receiver.data_dir == tmp_path / "etc/data"
    assert config.receiver.key == Path("/abs/key")


@pytest.mark.parametrize(("text", "mode"), [('"0600"', 0o600), ('"660"', 0o660), ("0o640", 0o640)])
def test_modes_are_octal_however_written(tmp_path: Path, text: str, mode: int) -> None:
    file = write(tmp_path, f"[splitter]\nsocket_mode = {text}\n{LEAST_AGENT}")
    assert load_agent(file).splitter.socket_mode == mode


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("dr", Address("dr", 4433)),
        ("dr:1", Address("dr", 1)),
        ("192.0.2.1:7000", Address("192.0.2.1", 7000)),
        ("[::1]", Address("::1", 4433)),
        ("[fe80::1%eth0]:7000", Address("fe80::1%eth0", 7000)),
    ],
)
def test_addresses(tmp_path: Path, text: str, address: Address) -> None:
    config = load_agent(write(tmp_path, f'[receiver]\naddress = "{text}"\n'))
    assert config.receiver.address == address


def test_a_spool_without_a_disk_tier_is_fine(tmp_path: Path) -> None:
    config = load_agent(write(tmp_path, f"[splitter]\nspool_disk = 0\n{LEAST_AGENT}"))
    assert config.splitter.spool_disk_bytes == 0


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case["why"])
def test_a_mistake_gets_its_place_and_its_sentence(case: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path, case["text"])
    load = load_agent if case["role"] == "agent" else load_receiver
    with pytest.raises(ConfigError) as caught:
        load(file)
    error = caught.value
    place = f"{case['place']}: " if case["place"] else ""
    assert error.message == f"{file}: {place}{case['message']}"
    assert (error.file, error.path, error.exit_code) == (file, case["place"], 2)
    if "hint" in case:
        assert error.hint == case["hint"]


def test_an_endless_number_is_a_sentence(tmp_path: Path) -> None:
    file = write(tmp_path, "size = " + "9" * 5000)
    with pytest.raises(ConfigError, match=r": a number has over 4300 digits$"):
        load_any(file)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_agent(tmp_path / "none.toml")


def test_a_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_agent(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'[receiver]\nname = "\xff"\n', "line 2: not UTF-8"),
        (b"#" * ((1 << 20) + 1), "is longer than 1048576 bytes"),
        (b"a = " + b"[" * 50_000, "is nested too deeply"),
    ],
    ids=["encoding", "size", "depth"],
)
def test_a_file_that_is_no_config_at_all(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_receiver(write(tmp_path, content))
    assert caught.value.message.endswith(f": {sentence}")


TEXTS = ["", "g", "a b", "1GiB", "1s", "9" * 30, "all 1h", "[::1]:1", "\0", "é", "external"]
toml_value = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.sampled_from(TEXTS) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "disk", "size", "address", "x"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
TABLES = ["agent", "splitter", "libvirt", "receiver", "group", "history"]
KEYS = ["name", "control", "socket_mode", "spool_disk", "max_stall", "address", "listen", "keep"]
table = st.dictionaries(st.sampled_from(KEYS), toml_value, max_size=3)


@given(st.dictionaries(st.sampled_from(TABLES), toml_value | table | st.lists(table, max_size=2)))
def test_whatever_toml_can_say_is_a_config_or_a_config_error(document: dict[str, Any]) -> None:
    for kind in (AgentConfig, ReceiverConfig):
        refusals: list[str] = []
        try:
            decode(Path("/f.toml"), document, kind)
        except ConfigError as error:
            refusals.append(error.message)
        assert all(text.startswith("/f.toml: ") and "`" not in text for text in refusals)


def test_config_errors_are_usage_errors(tmp_path: Path) -> None:
    """So one handler maps both to exit code 2."""
    with pytest.raises(UsageError):
        load_any(write(tmp_path, "x = 1\n"))


def test_a_file_is_told_apart_by_what_stands_in_it(tmp_path: Path) -> None:
    assert isinstance(load_any(ROOT / "deploy/agent.toml"), AgentConfig)
    assert isinstance(load_any(ROOT / "deploy/receiver.toml"), ReceiverConfig)
    assert isinstance(load_any(write(tmp_path, LEAST_AGENT)), AgentConfig)
    assert isinstance(load_any(write(tmp_path, '[receiver]\nname = "x"\n')), ReceiverConfig)
    with pytest.raises(ConfigError, match="neither an agent's nor a receiver's"):
        load_any(write(tmp_path, "# nothing\n"))
