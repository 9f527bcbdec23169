# SPDX-License-Identifier: Apache-2.0
"""NBD URIs: `nbd+unix:///EXPORT?socket=PATH`, `nbd://HOST:PORT/EXPORT`, `nbds://…`. No I/O.

Everything after the first slash of the path is the export's name, percent-encoded; a name that
begins with a slash is written with two. We write them for others to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from replicator.nbd.constants import DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """An export behind a unix socket."""

    socket: Path
    export: str = ""

    def __str__(self) -> str:
        return f"nbd+unix:///{quote(self.export)}?socket={quote(str(self.socket))}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An export behind a TCP port."""

    host: str
    port: int = DEFAULT_PORT
    export: str = ""
    is_tls: bool = False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "nbds" if self.is_tls else "nbd"
        return f"{scheme}://{host}:{self.port}/{quote(self.export)}"
