# SPDX-License-Identifier: Apache-2.0
"""TCP addresses as people write them: `host:port`, `[::1]:port`. No I/O."""

from __future__ import annotations

import re
from typing import Self

_BRACKETED = re.compile(r"\[([0-9A-Fa-f:.]+(?:%[\w.-]+)?)\](?::(.*))?", re.ASCII | re.DOTALL)
_PLAIN = re.compile(r"([A-Za-z0-9._-]{1,253})(?::(.*))?", re.ASCII | re.DOTALL)
_PORT = re.compile(r"\d{1,5}", re.ASCII)


class Address:
    """Host (a name or a literal without brackets) and port; port 0 means any free one.

    A plain class, because msgspec takes a dataclass for a table and would not ask for a parser.
    """

    __slots__ = ("host", "port")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and (self.host, self.port) == (other.host, other.port)

    def __hash__(self) -> int:
        return hash((self.host, self.port))

    def __repr__(self) -> str:
        return f"Address({self.host!r}, {self.port})"

    @classmethod
    def parse(cls, text: str, *, default_port: int | None = None) -> Self:
        """Raises ValueError, also for a missing port where `default_port` is None."""
        found = _BRACKETED.fullmatch(text) or _PLAIN.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not an address; write HOST:PORT or [IPV6]:PORT")
        host, port = found[1], found[2]
        if port is None and default_port is not None:
            return cls(host, default_port)
        if port is None:
            raise ValueError(f"{text!r} lacks a port; write {text}:PORT")
        if _PORT.fullmatch(port) is None or int(port) > 65535:
            raise ValueError(f"{text!r} is not an address: a port is a number up to 65535")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
