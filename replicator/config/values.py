# SPDX-License-Identifier: Apache-2.0
"""Values of a config file that are more than a string, a number or a list. No I/O.

Each type here has one parser in `PARSERS`, which takes what TOML gave and returns the value or
raises ValueError with what was found and what is wanted; the decoder adds file and path. They are
plain classes: msgspec would take a dataclass for a table and not ask the parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from replicator.base.address import Address
from replicator.base.units import parse_duration_ns, parse_size

WIRE_PORT = 4433
"""Where a receiver listens unless its config says otherwise."""


class ByteSize(int):
    """A size in bytes: `"1GiB"`, or a bare number of bytes."""


class DurationNs(int):
    """A duration in nanoseconds: `"250ms"`, `"1s"`, `"24h"`."""


class FileMode(int):
    """Permission bits of a file: `"0660"`, or TOML's `0o660`."""


class KeepRule:
    """Of points up to `span_ns` old, one for each `step_ns` stays; step 0 keeps all of them."""

    __slots__ = ("span_ns", "step_ns")

    def __init__(self, step_ns: int, span_ns: int) -> None:
        self.step_ns = step_ns
        self.span_ns = span_ns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeepRule) and (self.step_ns, self.span_ns) == (
            other.step_ns,
            other.span_ns,
        )

    def __hash__(self) -> int:
        return hash((self.step_ns, self.span_ns))

    def __repr__(self) -> str:
        return f"KeepRule({self.step_ns}, {self.span_ns})"


class MetricsAddress:
    """Where /metrics is served: `"127.0.0.1:9433"`, or `""` for nowhere."""

    __slots__ = ("address",)

    def __init__(self, address: Address | None) -> None:
        self.address = address

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MetricsAddress) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __repr__(self) -> str:
        return f"MetricsAddress({self.address!r})"


def describe(value: object) -> str:
    """What TOML gave, for an error message: `the integer 5`, `an array`."""
    match value:
        case bool():
            return "the boolean " + ("true" if value else "false")
        case int():
            return f"the integer {value}"
        case float():
            return f"the float {value}"
        case str():
            return f"the string {_shortened(value)!r}"
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return f"the date or time {value}"


def parse_byte_size(value: object) -> ByteSize:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(f"found {describe(value)}; a size cannot be negative")
        return ByteSize(parse_size(str(value)))
    return ByteSize(parse_size(_text(value, 'a size such as "512MiB"')))


def parse_duration(value: object) -> DurationNs:
    return DurationNs(parse_duration_ns(_text(value, 'a duration such as "250ms" or "1s"')))


def parse_file_mode(value: object) -> FileMode:
    wanted = 'permission bits such as "0660"'
    if isinstance(value, str) and re.fullmatch(r"[0-7]{3,4}", value, re.ASCII):
        value = int(value, 8)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 0o777:
        raise ValueError(f"found {describe(value)}; wanted {wanted}")
    return FileMode(value)


def parse_path(value: object) -> Path:
    text = _text(value, "a path")
    if not text or "\0" in text:
        raise ValueError(f"found {describe(value)}; wanted a path")
    return Path(text)


def parse_address(value: object) -> Address:
    return Address.parse(_text(value, 'an address such as "host:4433"'), default_port=WIRE_PORT)


def parse_metrics_address(value: object) -> MetricsAddress:
    text = _text(value, 'an address such as "127.0.0.1:9433", or "" for no metrics')
    return MetricsAddress(Address.parse(text) if text else None)


def parse_keep_rule(value: object) -> KeepRule:
    wanted = 'a rule such as "all 1h" or "1min 24h"'
    words = _text(value, wanted).split()
    if len(words) != 2:
        raise ValueError(f"found {describe(value)}; wanted {wanted}")
    step_ns = 0 if words[0] == "all" else parse_duration_ns(words[0])
    span_ns = parse_duration_ns(words[1])
    if words[0] != "all" and step_ns == 0:
        raise ValueError(f"found {describe(value)}; a step of nothing is written 'all'")
    if span_ns <= step_ns:
        raise ValueError(f"found {describe(value)}; the span must be longer than the step")
    return KeepRule(step_ns, span_ns)


PARSERS: dict[object, Callable[[object], object]] = {
    ByteSize: parse_byte_size,
    DurationNs: parse_duration,
    FileMode: parse_file_mode,
    Path: parse_path,
    Address: parse_address,
    MetricsAddress: parse_metrics_address,
    KeepRule: parse_keep_rule,
}


def _text(value: object, wanted: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"found {describe(value)}; wanted {wanted}")
    return value


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
