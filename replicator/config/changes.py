# SPDX-License-Identifier: Apache-2.0
"""What is different between two configurations of one daemon, and what of it takes effect live. No
I/O.

Names, folders and sockets are what a daemon's life rests on: others know it by them, and its lock
and its data lie there. They take a restart (`live` is False), and so does what would make a group
another one (its driver, the size of an external disk). All else is live. A group or disk that is
in one of the two alone is *added* or *removed*; nothing is said of what stands inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from replicator.base.units import exact_duration, exact_size
from replicator.config.agent import AgentConfig, DiskConfig, GroupConfig
from replicator.config.receiver import ReceiverConfig
from replicator.config.values import ByteSize, DurationNs, FileMode, KeepRule, MetricsAddress

Kind = Literal["added", "removed", "changed"]
C = TypeVar("C", AgentConfig, ReceiverConfig)

_AT_START = frozenset(
    {
        *("agent.name", "agent.state_dir", "agent.control", "agent.metrics"),
        *("splitter.socket", "splitter.socket_mode", "splitter.socket_group", "splitter.control"),
        *("splitter.spool_memory_dir", "splitter.spool_disk_dir", "libvirt.uri"),
        *("receiver.name", "receiver.listen", "receiver.data_dir", "receiver.control"),
        "receiver.metrics",
    }
)
_OF_A_GROUP_AT_START = frozenset({"driver"})
_OF_A_DISK_AT_START = frozenset({"size"})


@dataclass(frozen=True, slots=True)
class Change:
    """`place` as people name it: `splitter.max_stall`, `group web`, `group web, disk web-vdb`,
    `group web.checkpoint_interval`. Values as they may stand in a file; empty: not there."""

    place: str
    kind: Kind
    before: str = ""
    after: str = ""
    live: bool = True

    def __str__(self) -> str:
        if self.kind != "changed":
            return f"{self.place}: {self.kind}"
        late = "" if self.live else ", after a restart"
        return f"{self.place}: {self.before or 'nothing'} → {self.after or 'nothing'}{late}"


def agent_changes(before: AgentConfig, after: AgentConfig) -> list[Change]:
    """In the order of the file."""
    found: list[Change] = []
    for name in ("agent", "splitter", "libvirt", "receiver"):
        found += _keys(name, getattr(before, name), getattr(after, name), _AT_START)
    return found + list(_groups(_by_name(before.groups), _by_name(after.groups)))


def receiver_changes(before: ReceiverConfig, after: ReceiverConfig) -> list[Change]:
    found: list[Change] = []
    for name in ("receiver", "history", "scrub"):
        found += _keys(name, getattr(before, name), getattr(after, name), _AT_START)
    return found + list(_groups(_by_name(before.groups), _by_name(after.groups)))


def changes(
    before: AgentConfig | ReceiverConfig, after: AgentConfig | ReceiverConfig
) -> list[Change]:
    """Both of one daemon."""
    if isinstance(before, AgentConfig):
        assert isinstance(after, AgentConfig)
        return agent_changes(before, after)
    assert isinstance(after, ReceiverConfig)
    return receiver_changes(before, after)


def in_force(before: C, after: C) -> C:
    """What holds once `after` has been taken over without a restart: with what a start alone can
    change as it was, so that the next look says again what waits for one."""
    sections = {}
    for field in msgspec.structs.fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if isinstance(new, msgspec.Struct):
            sections[field.name] = _with_old(field.encode_name, old, new)
    known = _by_name(before.groups)
    groups = tuple(
        _group_in_force(known[group.name], group) if group.name in known else group
        for group in after.groups
    )
    return msgspec.structs.replace(after, **sections, groups=groups)


def _with_old(section: str, before: msgspec.Struct, after: msgspec.Struct) -> msgspec.Struct:
    kept = {
        field.name: getattr(before, field.name)
        for field in msgspec.structs.fields(after)
        if f"{section}.{field.encode_name}" in _AT_START
    }
    return msgspec.structs.replace(after, **kept)


def _group_in_force(before: Any, after: Any) -> Any:
    if not isinstance(after, GroupConfig):
        return after
    if before.driver != after.driver:
        return before
    sizes = {disk.disk_name: disk.size_bytes for disk in before.disks}
    disks = tuple(
        msgspec.structs.replace(disk, size_bytes=sizes.get(disk.disk_name, disk.size_bytes))
        for disk in after.disks
    )
    return msgspec.structs.replace(after, disks=disks)


def _groups(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for name in before:
        if name not in after:
            yield Change(f"group {name}", "removed")
    for name, group in after.items():
        if name not in before:
            yield Change(f"group {name}", "added")
            continue
        place = f"group {name}"
        yield from _keys(place, before[name], group, _OF_A_GROUP_AT_START, by_key=True)
        if isinstance(group, GroupConfig):
            yield from _disks(place, before[name], group)


def _disks(place: str, before: GroupConfig, after: GroupConfig) -> Iterator[Change]:
    old = {disk.disk_name: disk for disk in before.disks}
    new = {disk.disk_name: disk for disk in after.disks}
    for name in old:
        if name not in new:
            yield Change(f"{place}, disk {name}", "removed")
    for name, disk in new.items():
        if name not in old:
            yield Change(f"{place}, disk {name}", "added")
        else:
            at = f"{place}, disk {name}"
            yield from _keys(at, old[name], disk, _OF_A_DISK_AT_START, by_key=True)


def _keys(
    place: str,
    before: msgspec.Struct,
    after: msgspec.Struct,
    at_start: frozenset[str],
    *,
    by_key: bool = False,
) -> Iterator[Change]:
    """`at_start` holds whole places, or keys alone (`by_key`)."""
    for field in msgspec.structs.fields(after):
        old, new = getattr(before, field.name), getattr(after, field.name)
        at = f"{place}.{field.encode_name}"
        if isinstance(new, msgspec.Struct):
            yield from _keys(at, old, new, at_start, by_key=by_key)
        elif old != new and not _is_list_of(DiskConfig, (*_list(old), *_list(new))):
            live = (field.encode_name if by_key else at) not in at_start
            yield Change(at, "changed", in_toml(old), in_toml(new), live)


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, tuple) else ()


def _is_list_of(kind: type, values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(each, kind) for each in values)


def _by_name(groups: Sequence[Any]) -> dict[str, Any]:
    return {group.name: group for group in groups}


def in_toml(value: object) -> str:
    """As it may stand in a file; empty for None."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case ByteSize():
            return f'"{exact_size(value)}"'
        case DurationNs():
            return f'"{exact_duration(value)}"'
        case FileMode():
            return f'"{value:04o}"'
        case KeepRule():
            step = exact_duration(value.step_ns) if value.step_ns else "all"
            return f'"{step} {exact_duration(value.span_ns)}"'
        case MetricsAddress():
            return f'"{value.address or ""}"'
        case tuple():
            return f"[{', '.join(in_toml(each) for each in value)}]"
        case _:
            return f'"{value}"'
