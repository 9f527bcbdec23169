# SPDX-License-Identifier: Apache-2.0
"""One request of a client, as protocol, connection and export hand it to each other. No I/O."""

from __future__ import annotations

from typing import Final

from replicator.nbd.constants import Command, CommandFlag

Sendable = bytes | bytearray | memoryview
"""What a reply may be made of."""

_FUA: Final = int(CommandFlag.FUA)  # a plain number: cheaper than the member
_NOTHING: Final = memoryview(b"")


class Request:
    """One request. `cookie` is opaque. `payload` is empty but for WRITE; see exports.py for its
    life. `error` is set if the protocol has refused it; `answered` is the protocol's own."""

    __slots__ = ("answered", "command", "cookie", "error", "flags", "length", "offset", "payload")

    def __init__(
        self,
        command: int,
        flags: int,
        cookie: bytes,
        offset: int,
        length: int,
        payload: memoryview = _NOTHING,
    ) -> None:
        self.command = command
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.payload = payload
        self.error = 0
        self.answered = False

    @property
    def fua(self) -> bool:
        return bool(self.flags & _FUA)

    def __repr__(self) -> str:
        known = self.command in Command.__members__.values()
        name = Command(self.command).name if known else f"command {self.command}"
        refused = f" refused {self.error}" if self.error else ""
        return f"<{name} {self.offset}+{self.length} flags {self.flags:#x}{refused}>"
