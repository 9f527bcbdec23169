# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md says exactly what the config types say, and the units are sound."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from replicator.base.address import Address
from replicator.config import AgentConfig, ReceiverConfig
from replicator.config.decode import keys_of, table_type, tables_of
from replicator.config.values import (
    PARSERS,
    ByteSize,
    DurationNs,
    FileMode,
    KeepRule,
    MetricsAddress,
)

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/configuration.md").read_text()
WORDS: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    Path: "path",
    ByteSize: "size",
    DurationNs: "duration",
    FileMode: "permission bits",
    Address: "address",
    MetricsAddress: 'address or ""',
}
Row = tuple[str, str, str]


def documented(file: str) -> dict[str, list[Row]]:
    """Per table of `file`: key, type and default of each row."""
    (chapter,) = re.findall(rf"^# {re.escape(file)}$(.*?)(?=^# |\Z)", DOCUMENT, re.M | re.S)
    tables = {}
    for header, body in re.findall(r"^## (\[.*?\])$(.*?)(?=^## |\Z)", chapter, re.M | re.S):
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| .+ \|$", body, re.M)
        tables[header] = rows
    return tables


def type_words(wanted: Any) -> str:
    kinds = [kind for kind in get_args(wanted) if kind is not type(None)]
    if type(None) in get_args(wanted):
        return type_words(kinds[0])
    if table_type(wanted) is not None and get_origin(wanted) is not tuple:
        return "table [group.history]"
    if get_origin(wanted) is Literal:
        return " or ".join(f'"{option}"' for option in get_args(wanted))
    if get_origin(wanted) is tuple:
        item = get_args(wanted)[0]
        if table_type(wanted) is not None:
            return "list of [[group.disk]]"
        return "list of rules" if item is KeepRule else f"list of {WORDS[item]}s"
    return WORDS[wanted]


def parsed(wanted: Any, text: str) -> Any:
    """The value that a documented default stands for."""
    if text == "none":
        table = table_type(wanted)
        if table is not None and get_origin(wanted) is not tuple:
            return table()
        return () if get_origin(wanted) is tuple else None
    value = tomllib.loads(f"x = {text.strip('`')}")["x"]
    item = get_args(wanted)[0] if get_origin(wanted) is tuple else wanted
    if item not in PARSERS:
        return value
    return tuple(map(PARSERS[item], value)) if isinstance(value, list) else PARSERS[item](value)


@pytest.mark.parametrize(
    ("file", "kind"), [("agent.toml", AgentConfig), ("receiver.toml", ReceiverConfig)]
)
def test_every_key_is_documented_with_its_type_and_default(
    file: str, kind: type[msgspec.Struct]
) -> None:
    tables = dict(tables_of(kind))
    found = documented(file)
    assert list(found) == list(tables)
    for header, struct in tables.items():
        types = keys_of(struct)
        assert [key for key, _, _ in found[header]] == list(types), header
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        for key, type_text, default_text in found[header]:
            at = f"{header} {key}"
            assert type_text == type_words(types[key]), at
            if default_text == "required":
                assert fields[key].required, at
            elif default_text == "the host name":
                assert fields[key].default_factory is not msgspec.NODEFAULT, at
            else:
                assert parsed(types[key], default_text) == fields[key].default, at


def test_the_default_port_is_documented() -> None:
    from replicator.config.values import WIRE_PORT

    assert f"the port may be left out: {WIRE_PORT}." in " ".join(DOCUMENT.split())


UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))


def unit(name: str) -> dict[str, list[str]]:
    """The keys of a unit, in order, without its sections."""
    text = (ROOT / f"deploy/systemd/{name}.service").read_text()
    keys: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.M):
        keys.setdefault(key, []).append(value)
    return keys


def test_there_is_a_unit_for_each_daemon() -> None:
    assert [path.stem for path in UNITS] == [
        "replicator-agent",
        "replicator-receiver",
        "replicator-splitter",
    ]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_checks_its_config_before_it_starts(path: Path) -> None:
    keys = unit(path.stem)
    (start,) = keys["ExecStart"]
    program, option, config = start.split()
    assert (Path(program).name, option) == (path.stem, "--config")
    assert f"/opt/replicator/bin/replicator config check {config}" in keys["ExecStartPre"]
    assert keys["Type"] == ["notify"]
    assert keys["RuntimeDirectoryPreserve"] == ["yes"], "the folder holds the others' sockets"


def test_nothing_drags_the_splitter_along() -> None:
    for path in UNITS:
        for key, values in unit(path.stem).items():
            if key in ("Requires", "BindsTo", "PartOf", "Requisite", "Upholds", "PropagatesStopTo"):
                assert "replicator-splitter.service" not in " ".join(values).split()
    assert not {"PartOf", "BindsTo", "Requires"} & set(unit("replicator-splitter"))


def test_the_agent_stops_before_the_guests_are_saved() -> None:
    """Units stop in the reverse of the order they start in."""
    after = " ".join(unit("replicator-agent")["After"]).split()
    assert {"libvirt-guests.service", "libvirtd.service", "virtqemud.service"} <= set(after)
    assert "replicator-splitter.service" in after


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


@needs_systemd
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_systemd_finds_a_unit_correct_and_tight(path: Path, tmp_path: Path) -> None:
    for program in ("replicator", path.stem):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    copy = tmp_path / path.name
    copy.write_text(path.read_text().replace("/opt/replicator/bin", str(tmp_path)))
    for arguments in (
        ["verify", "--man=no", "--recursive-errors=no", str(copy)],
        ["security", "--offline=true", "--threshold=20", str(copy)],
    ):
        done = subprocess.run(
            ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if arguments[0] == "verify":
            assert done.stderr == ""


def test_each_decision_is_in_the_index_by_its_own_title() -> None:
    folder = ROOT / "docs/decisions"
    pages = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert len({path.name[:4] for path in pages}) == len(pages), "no number twice"
    for path in pages:
        number, _, title = path.read_text().splitlines()[0].removeprefix("# ").partition(" ")
        assert path.name.startswith(f"{number}-")
        assert f"| [{number}]({path.name}) | {title} |" in (folder / "README.md").read_text()
