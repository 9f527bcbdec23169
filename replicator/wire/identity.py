# SPDX-License-Identifier: Apache-2.0
"""TLS for the wire: mutual, 1.3 only; who the peer is; refusals in words.

Both ends show a certificate of the operator's own CA, and check the other's against it. The
agent checks the receiver's host name; the receiver learns the agent's names from its DNS SANs and
decides for itself which of them may feed which group.

With TLS 1.3 a client's handshake ends before the server has looked at its certificate, so a
refusal shows only afterwards: as an alert on the first read, or, since event loops close without
sending the alert, as an end without a word. A receiver that is merely busy or stopping says so,
hence `closed_without_a_word` takes such an end for a refusal, and says that it is a guess.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replicator.base.errors import IdentityError, ReplicatorError, UnreachableError, UsageError

# Reasons (OpenSSL's words) that mean "your certificate", not "the network".
_CERTIFICATE_WORDS = ("CERTIFICATE", "UNKNOWN_CA", "BAD_CERTIFICATE", "ACCESS_DENIED")


def client_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For the agent: checks the chain and the host name. Raises IdentityError, UsageError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = True
    _load(context, ca, certificate, key)
    return context


def server_context(ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """For the receiver: a peer without a certificate of this CA gets no further than TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, ca, certificate, key)
    context.num_tickets = 0  # sessions are not resumed: each connection proves who it is
    return context


def dns_names(certificate: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The DNS SANs of a verified certificate (`getpeercert()`), as they stand in it."""
    entries = (certificate or {}).get("subjectAltName", ())
    return tuple(value for kind, value in entries if kind == "DNS")


def refusal(error: OSError, peer_name: str) -> ReplicatorError:
    """The sentence for a failed connection: refused identities apart from unreachable peers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return IdentityError(
            f"{peer_name} showed a certificate that was refused: {error.verify_message}",
            hint="check [receiver] address against the names in its certificate, and that both"
            " ends were given the same CA",
        )
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if any(word in reason.upper() for word in _CERTIFICATE_WORDS):
            return IdentityError(
                f"{peer_name} refused our certificate ({_plain(reason)})",
                hint="it must be signed by the CA that the other end was given, and still valid",
            )
        return UnreachableError(f"{peer_name}: no TLS connection ({_plain(reason)})")
    return UnreachableError(f"{peer_name} cannot be reached: {error.strerror or error}")


def closed_without_a_word(peer_name: str) -> IdentityError:
    """For an agent whose connection ended after TLS, before the receiver had said anything."""
    return IdentityError(
        f"{peer_name} closed the connection without a word, as it does when it refuses our"
        " certificate",
        hint="check that [receiver] certificate is signed by the CA that the receiver was given,"
        " and is still valid",
    )


def _load(context: ssl.SSLContext, ca: Path, certificate: Path, key: Path) -> None:
    for what, path in (("CA", ca), ("certificate", certificate), ("key", key)):
        if not path.is_file():
            raise UsageError(
                f"{path}: no such {what} file",
                hint="make one with: replicator pki init, then replicator pki issue",
            )
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise IdentityError(f"{ca}: holds no CA certificate ({_plain(error.reason)})") from error
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise IdentityError(
            f"{certificate} and {key} are no certificate and its key ({_plain(error.reason)})"
        ) from error


def _plain(reason: str | None) -> str:
    return (reason or "unreadable").lower().replace("_", " ")
