# SPDX-License-Identifier: Apache-2.0
"""TLS as a server demands it: the handshake behind STARTTLS, and who is let in."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerTls:
    """`admits` decides by the client's certificate, which the context has verified, in the words of
    `getpeercert()`."""

    context: ssl.SSLContext
    admits: Callable[[Mapping[str, Any]], bool]

    async def secure(
        self, plain: asyncio.Transport, protocol: asyncio.BaseProtocol
    ) -> asyncio.Transport | None:
        """The TLS handshake, in which the client proves who it is. The transport that `protocol`
        has from then on; None where it was lost meanwhile. Raises OSError and CancelledError,
        having said so in the log."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.start_tls(plain, protocol, self.context, server_side=True)
        except (OSError, asyncio.CancelledError) as error:
            _log.warning("NBD client failed its TLS handshake", extra={"reason": str(error)})
            raise

    def lets_in(self, secured: asyncio.Transport) -> bool:
        """Who is not let in is named in the log."""
        certificate: Mapping[str, Any] = secured.get_extra_info("peercert") or {}
        if self.admits(certificate):
            return True
        subject = str(certificate.get("subject", "no certificate"))
        _log.warning("NBD client is not admitted", extra={"subject": subject})
        return False
