# SPDX-License-Identifier: Apache-2.0
"""receiver.toml: the DR site's configuration. As agent.py, for the other side."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from replicator.base.address import Address
from replicator.base.units import GIB, KIB, MIB, format_duration, format_size
from replicator.config.checks import Fault, duplicates, name_faults, socket_faults
from replicator.config.decode import decode, keys_of, read_document, refuse
from replicator.config.role import refuse_other_role
from replicator.config.values import WIRE_PORT, ByteSize, DurationNs, KeepRule, MetricsAddress

HISTORY_BYTES_MIN = 64 * KIB
SCRUB_RATE_MIN = 64 * KIB
HOUR_NS = 3600 * 1_000_000_000
MINUTE_NS = 60 * 1_000_000_000

WhenFull = Literal["thin", "pause"]


class ReceiverSection(msgspec.Struct, frozen=True, kw_only=True):
    """[receiver]"""

    name: str = msgspec.field(default_factory=socket.gethostname)
    listen: Address = Address("0.0.0.0", WIRE_PORT)
    data_dir: Path = Path("/var/lib/replicator/receiver")
    control: Path = Path("/run/replicator/receiver.sock")
    metrics: MetricsAddress = MetricsAddress(None)
    ca: Path = Path("/etc/replicator/ca.crt")
    certificate: Path = Path("/etc/replicator/receiver.crt")
    key: Path = Path("/etc/replicator/receiver.key")


class HistorySection(msgspec.Struct, frozen=True, kw_only=True):
    """[history]: how much of the past is kept, for each group."""

    max_bytes: ByteSize = ByteSize(100 * GIB)
    keep: tuple[KeepRule, ...] = (KeepRule(0, HOUR_NS), KeepRule(MINUTE_NS, 24 * HOUR_NS))
    min_window: DurationNs = DurationNs(0)
    when_full: WhenFull = "thin"
    min_lock: DurationNs = DurationNs(0)
    fine_history: DurationNs = DurationNs(0)

    @property
    def span_ns(self) -> int:
        """How far back `keep` reaches."""
        return max((rule.span_ns for rule in self.keep), default=0)


class ScrubSection(msgspec.Struct, frozen=True, kw_only=True):
    """[scrub]: how often replicas and histories are read back, and how fast."""

    every: DurationNs = DurationNs(30 * 24 * HOUR_NS)
    rate: ByteSize = ByteSize(50 * MIB)


class GroupHistorySection(msgspec.Struct, frozen=True, kw_only=True):
    """[group.history]: what is different for this group. The keys of [history]."""

    max_bytes: ByteSize | None = None
    keep: tuple[KeepRule, ...] | None = None
    min_window: DurationNs | None = None
    when_full: WhenFull | None = None
    min_lock: DurationNs | None = None
    fine_history: DurationNs | None = None


class ReceiverGroupConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[[group]]: which agents may feed it, and how its history differs from the others'."""

    name: str
    agents: tuple[str, ...]
    history: GroupHistorySection = GroupHistorySection()


class ReceiverConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of receiver.toml."""

    receiver: ReceiverSection = ReceiverSection()
    history: HistorySection = HistorySection()
    scrub: ScrubSection = ScrubSection()
    groups: tuple[ReceiverGroupConfig, ...] = msgspec.field(name="group", default=())

    def history_of(self, group: ReceiverGroupConfig) -> HistorySection:
        """[history] with what the group states otherwise."""
        stated = {
            key: value
            for key, value in msgspec.structs.asdict(group.history).items()
            if value is not None
        }
        return msgspec.structs.replace(self.history, **stated)


def load_receiver(path: Path) -> ReceiverConfig:
    """Raises ConfigError."""
    document = read_document(path)
    refuse_other_role(path, document, "receiver")
    config = decode(path, document, ReceiverConfig)
    refuse(path, _faults(config))
    return config


def _faults(config: ReceiverConfig) -> Iterator[Fault]:
    yield from name_faults("receiver.name", "a receiver", config.receiver.name)
    yield from socket_faults({"receiver.control": config.receiver.control})
    yield from _history_faults(config.history, "history", tuple(keys_of(HistorySection)))
    if config.scrub.rate < SCRUB_RATE_MIN:
        found, least = format_size(config.scrub.rate), format_size(SCRUB_RATE_MIN)
        yield Fault("scrub.rate", f"found {found}; the least is {least}")
    yield from duplicates("group", "name", [group.name for group in config.groups])
    for index, group in enumerate(config.groups):
        at = f"group[{index}]"
        yield from name_faults(f"{at}.name", "a group", group.name)
        if not group.agents:
            yield Fault(f"{at}.agents", "is empty; name at least one agent that may feed the group")
        for number, agent in enumerate(group.agents):
            yield from name_faults(f"{at}.agents[{number}]", "an agent", agent)
        yield from duplicates(f"{at}.agents", "", group.agents)
        stated = tuple(
            key for key, value in msgspec.structs.asdict(group.history).items() if value is not None
        )
        yield from _history_faults(config.history_of(group), f"{at}.history", stated)


def _history_faults(history: HistorySection, at: str, stated: Sequence[str]) -> Iterator[Fault]:
    """Those that the keys `stated` at `at` bring about; `history` is what they come to."""
    if "max_bytes" in stated and history.max_bytes < HISTORY_BYTES_MIN:
        found, least = format_size(history.max_bytes), format_size(HISTORY_BYTES_MIN)
        yield Fault(f"{at}.max_bytes", f"found {found}; the least is {least}")
    if "keep" in stated:
        yield from _keep_faults(history.keep, f"{at}.keep")
    for key, length_ns in (("min_window", history.min_window), ("min_lock", history.min_lock)):
        if length_ns > history.span_ns and (key in stated or "keep" in stated):
            yield Fault(
                f"{at}.{key if key in stated else 'keep'}",
                f"{key} is {format_duration(length_ns)}, but the last rule of keep ends at"
                f" {format_duration(history.span_ns)}",
                "let a rule of keep reach as far, or make it shorter",
            )


def _keep_faults(rules: Sequence[KeepRule], at: str) -> Iterator[Fault]:
    """Older points are kept more coarsely and for longer: steps and spans both rise."""
    if not rules:
        yield Fault(at, "is empty; it needs at least one rule", 'write ["all 1h"]')
    for index in range(1, len(rules)):
        before, rule = rules[index - 1], rules[index]
        if rule.step_ns <= before.step_ns or rule.span_ns <= before.span_ns:
            yield Fault(
                f"{at}[{index}]",
                f"a rule's step and span must be longer than those of the rule before it "
                f"({_step(before)}, {format_duration(before.span_ns)})",
            )


def _step(rule: KeepRule) -> str:
    return format_duration(rule.step_ns) if rule.step_ns else "all"
