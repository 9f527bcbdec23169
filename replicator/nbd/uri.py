# SPDX-License-Identifier: Apache-2.0
"""NBD URIs: `nbd+unix:///EXPORT?socket=PATH`, `nbd://HOST:PORT/EXPORT`, `nbds://…`. No I/O.

Everything after the first slash of the path is the export's name, percent-decoded; a name that
begins with a slash is written with two. A TLS scheme is written for others, and refused where we
are the client, as unknown parameters are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from replicator.base.errors import UsageError
from replicator.nbd.constants import DEFAULT_PORT

_HINT = "write nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT"


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


Address = UnixAddress | TcpAddress


def parse_uri(text: str) -> Address:
    """Raises UsageError with what is accepted."""
    try:
        parts = urlsplit(text)
        port = parts.port
        parameters = dict(
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        )
    except ValueError as error:
        raise UsageError(f"{text!r} is not an NBD URI: {error}", hint=_HINT) from None
    export = unquote(parts.path.removeprefix("/"))
    socket = parameters.pop("socket", "")
    if parameters:
        raise UsageError(f"{text!r}: unknown parameter {min(parameters)!r}", hint=_HINT)
    if parts.scheme == "nbd+unix" and socket and not parts.netloc:
        return UnixAddress(Path(socket), export)
    if parts.scheme == "nbd" and parts.hostname and not socket:
        return TcpAddress(parts.hostname, DEFAULT_PORT if port is None else port, export)
    raise UsageError(f"{text!r} is not an NBD URI that can be reached", hint=_HINT)
