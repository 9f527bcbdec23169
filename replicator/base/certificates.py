# SPDX-License-Identifier: Apache-2.0
"""What stands in a certificate, and what a person should know of it in time.

The names of an agent are the DNS SANs of its certificate: without its own among them every
receiver refuses it, so a start does too (`require_own_name`). Everything else is said and stops
nobody here: the far end judges dates, names and the CA when a connection is made, and what is
wrong with a certificate today may be right after a rotation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from replicator.base.errors import IdentityError

EXPIRES_SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Those of one file, in its order: first who shows it, then who signed that."""

    path: Path
    chain: tuple[x509.Certificate, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """DNS names and addresses that the first one stands for."""
        return (*self.dns_names, *map(str, self._alternatives(x509.IPAddress)))

    @property
    def dns_names(self) -> tuple[str, ...]:
        return tuple(self._alternatives(x509.DNSName))

    @property
    def not_before(self) -> datetime:
        return max(each.not_valid_before_utc for each in self.chain)

    @property
    def not_after(self) -> datetime:
        """When the first of them to expire does."""
        return min(each.not_valid_after_utc for each in self.chain)

    def is_by(self, authorities: Certificates) -> bool:
        """Whether one of these authorities, of its very key, has signed one of the chain."""
        return any(_signed(ca, each) for each in self.chain for ca in authorities.chain)

    def _alternatives(self, kind: type[x509.DNSName | x509.IPAddress]) -> list[Any]:
        try:
            found = self.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            return []
        return list(found.value.get_values_for_type(kind))


def read_certificates(path: Path) -> Certificates:
    """Raises IdentityError for a file that holds none, OSError."""
    try:
        return Certificates(path, tuple(x509.load_pem_x509_certificates(path.read_bytes())))
    except ValueError as error:
        raise IdentityError(f"{path} cannot be read: {error}") from error


def require_own_name(path: Path, name: str) -> None:
    """A certificate without the agent's name among its DNS SANs is refused by every receiver.
    Raises IdentityError, OSError."""
    found = read_certificates(path).dns_names
    if name not in found:
        raise IdentityError(
            f"{path} does not name this agent: it names {', '.join(found) or 'nobody'}",
            hint=f"set [agent] name to one of these, or run: replicator pki issue {name}",
        )


def age_warnings(place: str, certificates: Certificates, now: datetime) -> Iterator[str]:
    """At most one sentence, beginning with `place`: not valid yet, expired, or soon."""
    path, end = certificates.path, certificates.not_after
    if now < certificates.not_before:
        yield (
            f"{place}: {path} is valid from {_day(certificates.not_before)} on, and this machine's "
            f"clock says {_day(now)}"
        )
    elif now >= end:
        yield f"{place}: {path} expired on {_day(end)}, so every connection is refused"
    elif now >= end - EXPIRES_SOON:
        yield f"{place}: {path} expires on {_day(end)}, in {(end - now).days} days"


def pair_warnings(ca: Path, certificate: Path, now: datetime) -> Iterator[str]:
    """What is to be known of a CA and a certificate. What cannot be read is left to who reads
    it."""
    read: dict[str, Certificates] = {}
    for key, path in (("ca", ca), ("certificate", certificate)):
        try:
            read[key] = read_certificates(path)
        except (IdentityError, OSError):
            continue
        yield from age_warnings(f"receiver.{key}", read[key], now)
    if len(read) == 2 and not read["certificate"].is_by(read["ca"]):
        yield (
            f"receiver.certificate: {certificate} was not signed by {ca}: the other end, if it "
            "has the same CA, refuses it"
        )


def _signed(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
