# SPDX-License-Identifier: Apache-2.0
"""agent.toml: the source side's configuration, shared by the agent and the splitter.

The struct's fields carry units, the file's keys are as people write them (`max_stall = "2s"`).
`_faults` yields what types alone cannot say: bounds, duplicates, keys that belong to the other
driver. It yields in the order of the file, so that the first error is the one nearest the top.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from replicator.base.address import Address
from replicator.base.names import NAME_RULE, is_name
from replicator.base.units import GIB, MIB, format_duration, format_size
from replicator.config.checks import (
    Fault,
    duplicates,
    name_faults,
    same_path_faults,
    socket_faults,
)
from replicator.config.decode import decode, read_document, refuse
from replicator.config.role import refuse_other_role
from replicator.config.values import ByteSize, DurationNs, FileMode, MetricsAddress

MS = 1_000_000
SECOND = 1_000_000_000
CHECKPOINT_INTERVAL_MIN_NS = 100 * MS
CHECKPOINT_INTERVAL_MAX_NS = 3600 * SECOND
RPO_ALARM_MIN_NS = SECOND
RPO_ALARM_MAX_NS = 31 * 86_400 * SECOND
MAX_STALL_MIN_NS = 10 * MS
MAX_STALL_MAX_NS = 60 * SECOND
SPOOL_BYTES_MIN = MIB
DISK_BYTES_UNIT = 512

# libvirt needs some time for each freeze; guests do not stand being frozen for long.
FREEZE_TIMEOUT_MIN_NS = 100 * MS
FREEZE_TIMEOUT_MAX_NS = 60 * SECOND
SCRIPT_TIMEOUT_MIN_NS = 100 * MS
SCRIPT_TIMEOUT_MAX_NS = 600 * SECOND
MARK_EVERY_MIN_NS = SECOND
MARK_EVERY_MAX_NS = 31 * 86_400 * SECOND
MARK_EXPIRE_MAX_NS = 100 * 366 * 86_400 * SECOND

Driver = Literal["libvirt", "external"]
Quiesce = Literal["require", "try"]


class AgentSection(msgspec.Struct, frozen=True, kw_only=True):
    """[agent]"""

    name: str = msgspec.field(default_factory=socket.gethostname)
    state_dir: Path = Path("/var/lib/replicator/agent")
    control: Path = Path("/run/replicator/agent.sock")
    metrics: MetricsAddress = MetricsAddress(None)


class SplitterSection(msgspec.Struct, frozen=True, kw_only=True):
    """[splitter]"""

    socket: Path = Path("/run/replicator/splitter.sock")
    socket_mode: FileMode = FileMode(0o660)
    socket_group: str = ""
    control: Path = Path("/run/replicator/splitter-control.sock")
    spool_memory_dir: Path = Path("/dev/shm/replicator")
    spool_memory_bytes: ByteSize = msgspec.field(name="spool_memory", default=ByteSize(GIB))
    spool_disk_dir: Path = Path("/var/spool/replicator")
    spool_disk_bytes: ByteSize = msgspec.field(name="spool_disk", default=ByteSize(20 * GIB))
    max_stall_ns: DurationNs = msgspec.field(name="max_stall", default=DurationNs(2 * SECOND))


class LibvirtSection(msgspec.Struct, frozen=True, kw_only=True):
    """[libvirt]"""

    uri: str = "qemu:///system"


class ReceiverLink(msgspec.Struct, frozen=True, kw_only=True):
    """[receiver]: where the agent ships to, and who it is there."""

    address: Address
    ca: Path = Path("/etc/replicator/ca.crt")
    certificate: Path = Path("/etc/replicator/agent.crt")
    key: Path = Path("/etc/replicator/agent.key")


class DiskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[[group.disk]]: `domain` and `target` (libvirt), or `name` and `size` (external)."""

    domain: str | None = None
    target: str | None = None
    name: str | None = None
    size_bytes: ByteSize | None = msgspec.field(name="size", default=None)

    @property
    def disk_name(self) -> str:
        """What the disk is called everywhere but in libvirt: `DOMAIN-TARGET`, or its own name."""
        return f"{self.domain}-{self.target}" if self.name is None else self.name


class GroupConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[[group]]"""

    name: str
    driver: Driver = "libvirt"
    checkpoint_interval_ns: DurationNs = msgspec.field(
        name="checkpoint_interval", default=DurationNs(SECOND)
    )
    rpo_alarm_ns: DurationNs = msgspec.field(name="rpo_alarm", default=DurationNs(60 * SECOND))
    quiesce: Quiesce = "require"
    freeze_timeout_ns: DurationNs = msgspec.field(
        name="freeze_timeout", default=DurationNs(10 * SECOND)
    )
    quiesce_pre: tuple[str, ...] = ()
    quiesce_post: tuple[str, ...] = ()
    script_timeout_ns: DurationNs = msgspec.field(
        name="script_timeout", default=DurationNs(30 * SECOND)
    )
    mark_every_ns: DurationNs | None = msgspec.field(name="mark_every", default=None)
    mark_quiesce: bool = False
    mark_expire_ns: DurationNs = msgspec.field(
        name="mark_expire", default=DurationNs(7 * 86_400 * SECOND)
    )
    disks: tuple[DiskConfig, ...] = msgspec.field(name="disk", default=())


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of agent.toml."""

    agent: AgentSection = AgentSection()
    splitter: SplitterSection = SplitterSection()
    libvirt: LibvirtSection = LibvirtSection()
    receiver: ReceiverLink
    groups: tuple[GroupConfig, ...] = msgspec.field(name="group", default=())


def load_agent(path: Path) -> AgentConfig:
    """Raises ConfigError."""
    document = read_document(path)
    refuse_other_role(path, document, "agent")
    config = decode(path, document, AgentConfig)
    refuse(path, _faults(config))
    return config


def _faults(config: AgentConfig) -> Iterator[Fault]:
    yield from name_faults("agent.name", "an agent", config.agent.name)
    yield from socket_faults(
        {
            "agent.control": config.agent.control,
            "splitter.socket": config.splitter.socket,
            "splitter.control": config.splitter.control,
        }
    )
    yield from _splitter_faults(config.splitter)
    if not config.libvirt.uri:
        yield Fault("libvirt.uri", "is empty; wanted a libvirt URI such as qemu:///system")
    if config.receiver.address.port == 0:
        yield Fault("receiver.address", "port 0 cannot be reached")
    yield from duplicates("group", "name", [group.name for group in config.groups])
    for index, group in enumerate(config.groups):
        yield from _group_faults(f"group[{index}]", group)
    yield from _shared_disks(config.groups)


def _splitter_faults(splitter: SplitterSection) -> Iterator[Fault]:
    floor = f"the least is {format_size(SPOOL_BYTES_MIN)}"
    if splitter.spool_memory_bytes < SPOOL_BYTES_MIN:
        found = format_size(splitter.spool_memory_bytes)
        yield Fault("splitter.spool_memory", f"found {found}; {floor}")
    if 0 < splitter.spool_disk_bytes < SPOOL_BYTES_MIN:
        found = format_size(splitter.spool_disk_bytes)
        yield Fault("splitter.spool_disk", f"found {found}; {floor}, or 0 for no spool on disk")
    yield from same_path_faults(
        {
            "splitter.spool_memory_dir": splitter.spool_memory_dir,
            "splitter.spool_disk_dir": splitter.spool_disk_dir,
        }
    )
    yield from _bounds(
        "splitter.max_stall", splitter.max_stall_ns, MAX_STALL_MIN_NS, MAX_STALL_MAX_NS
    )


def _bounds(path: str, value_ns: int, least_ns: int, most_ns: int) -> Iterator[Fault]:
    if not least_ns <= value_ns <= most_ns:
        yield Fault(
            path,
            f"found {format_duration(value_ns)}; wanted {format_duration(least_ns)} to "
            f"{format_duration(most_ns)}",
        )


def _group_faults(at: str, group: GroupConfig) -> Iterator[Fault]:
    yield from name_faults(f"{at}.name", "a group", group.name)
    yield from _bounds(
        f"{at}.checkpoint_interval",
        group.checkpoint_interval_ns,
        CHECKPOINT_INTERVAL_MIN_NS,
        CHECKPOINT_INTERVAL_MAX_NS,
    )
    yield from _bounds(f"{at}.rpo_alarm", group.rpo_alarm_ns, RPO_ALARM_MIN_NS, RPO_ALARM_MAX_NS)
    yield from _quiesce_faults(at, group)
    if not group.disks:
        yield Fault(f"{at}.disk", f"group {group.name!r} has no disk", hint="add [[group.disk]]")
    for index, disk in enumerate(group.disks):
        yield from _disk_faults(f"{at}.disk[{index}]", group.driver, disk)
    yield from duplicates(f"{at}.disk", "", [disk.disk_name for disk in group.disks])


def _quiesce_faults(at: str, group: GroupConfig) -> Iterator[Fault]:
    for key, value_ns, least_ns, most_ns in (
        (
            "freeze_timeout",
            group.freeze_timeout_ns,
            FREEZE_TIMEOUT_MIN_NS,
            FREEZE_TIMEOUT_MAX_NS,
        ),
        (
            "script_timeout",
            group.script_timeout_ns,
            SCRIPT_TIMEOUT_MIN_NS,
            SCRIPT_TIMEOUT_MAX_NS,
        ),
        ("mark_every", group.mark_every_ns, MARK_EVERY_MIN_NS, MARK_EVERY_MAX_NS),
        ("mark_expire", group.mark_expire_ns, SECOND, MARK_EXPIRE_MAX_NS),
    ):
        if value_ns is not None:
            yield from _bounds(f"{at}.{key}", value_ns, least_ns, most_ns)
    for key, command in (("quiesce_pre", group.quiesce_pre), ("quiesce_post", group.quiesce_post)):
        if command and not command[0].startswith("/"):
            yield Fault(
                f"{at}.{key}[0]",
                f"{command[0][:80]!r} is no absolute path",
                hint="scripts are run without a shell and without PATH",
            )
        if any("\0" in word for word in command):
            yield Fault(f"{at}.{key}", "holds a NUL, which no argument can")
    scripts = bool(group.quiesce_pre or group.quiesce_post)
    if group.mark_quiesce and group.driver == "external" and not scripts:
        yield Fault(
            f"{at}.mark_quiesce",
            "nobody can quiesce a group of driver 'external' that has no scripts",
            hint="set quiesce_pre and quiesce_post, which do it",
        )


def _disk_faults(at: str, driver: Driver, disk: DiskConfig) -> Iterator[Fault]:
    yield from _driver_key_faults(at, driver, disk)
    for key, text in (("domain", disk.domain), ("target", disk.target), ("name", disk.name)):
        if text is not None and not is_name(text):
            yield Fault(
                f"{at}.{key}",
                f"{text[:80]!r} cannot be {'a' if key == 'name' else 'part of a'} disk name",
                hint=f"names are {NAME_RULE}"
                + ("; virsh domrename gives a domain another name" if key == "domain" else ""),
            )
    if not is_name(disk.disk_name):
        yield Fault(
            at,
            f"{disk.disk_name[:140]!r}, its disk name, is too long",
            hint=f"names are {NAME_RULE}",
        )
    if disk.size_bytes is not None and (disk.size_bytes == 0 or disk.size_bytes % DISK_BYTES_UNIT):
        yield Fault(
            f"{at}.size", f"found {disk.size_bytes} bytes; wanted a multiple of 512 above 0"
        )


def _driver_key_faults(at: str, driver: Driver, disk: DiskConfig) -> Iterator[Fault]:
    """A disk has the two keys of its group's driver and none of the other's."""
    given: dict[Driver, dict[str, str | int | None]] = {
        "libvirt": {"domain": disk.domain, "target": disk.target},
        "external": {"name": disk.name, "size": disk.size_bytes},
    }
    wanted = f"a disk of driver {driver!r} has {' and '.join(given[driver])}"
    for other, keys in given.items():
        for key, value in keys.items():
            if other == driver and value is None:
                yield Fault(f"{at}.{key}", f"missing; {wanted}")
            elif other != driver and value is not None:
                yield Fault(
                    f"{at}.{key}",
                    f"is a key of driver {other!r}; {wanted}",
                    hint=f'if that is meant, write driver = "{other}" in the group',
                )


def _shared_disks(groups: tuple[GroupConfig, ...]) -> Iterator[Fault]:
    """A disk is written to one log, so it can be in one group only."""
    owner: dict[tuple[str | None, str | None], str] = {}
    for group_index, group in enumerate(groups):
        for disk_index, disk in enumerate(group.disks):
            if group.driver != "libvirt":
                continue
            first = owner.setdefault((disk.domain, disk.target), group.name)
            if first != group.name:
                yield Fault(
                    f"group[{group_index}].disk[{disk_index}]",
                    f"{disk.target} of domain {disk.domain} is in group {first!r} already",
                    hint="a disk can be in one group only",
                )
