# SPDX-License-Identifier: Apache-2.0
"""NBD URIs as a client reads them: what replicator.nbd.uri writes, and nothing else. No I/O.

A TLS scheme is refused, as unknown parameters are: the client here has none.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from replicator.base.errors import UsageError
from replicator.nbd.constants import DEFAULT_PORT
from replicator.nbd.uri import TcpAddress, UnixAddress

_HINT = "write nbd+unix:///EXPORT?socket=PATH or nbd://HOST:PORT/EXPORT"

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
