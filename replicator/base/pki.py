# SPDX-License-Identifier: Apache-2.0
"""A small certificate authority: as much PKI as mutual TLS between agents and receivers needs.

A CA is a folder with `ca.crt` and `ca.key`; each certificate issued is `NAME.crt` with `NAME.key`.
NAME is the owner's name and stands in the DNS SANs: that is what the other side compares. Every
certificate serves for both roles, since who may do what is decided by name. Keys are ECDSA P-256,
mode 0600. Nothing that exists is overwritten, and an order that fails leaves no file behind.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from replicator.base.errors import IdentityError, UsageError
from replicator.base.names import check_name

CA_DAYS = 3650
CERTIFICATE_DAYS = 730
BACKDATED = timedelta(hours=1)  # the other machine's clock may be behind ours

_DNS_NAME = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Issued:
    """Where a certificate and its key were written."""

    certificate: Path
    key: Path


def init_ca(folder: Path, *, name: str = "Replicator CA") -> Issued:
    """Makes a CA in `folder`, which is created. Raises UsageError where one is already."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    public = key.public_key()
    certificate = (
        _builder(subject, subject, public, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    return _write(folder, "ca", certificate, key)


def issue(
    folder: Path, name: str, *, sans: Sequence[str] = (), days: int = CERTIFICATE_DAYS
) -> Issued:
    """A certificate for `name` by the CA in `folder`. `sans`: further DNS names or IP addresses."""
    check_name("certificate", name)
    if name == "ca":
        raise UsageError("'ca' is the authority itself", hint="choose another name")
    alternatives = [_general_name(text) for text in dict.fromkeys([name, *sans])]
    authority, authority_key = _load_ca(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        _builder(subject, authority.subject, public, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    return _write(folder, name, certificate, key)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if _DNS_NAME.fullmatch(text) is None:
        raise UsageError(f"{text[:80]!r} is neither a DNS name nor an IP address")
    return x509.DNSName(text)


def _load_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except FileNotFoundError as error:
        raise UsageError(
            f"there is no CA in {folder}: {error.filename} is missing",
            hint=f"make one with: replicator pki init --dir {folder}",
        ) from None
    except (ValueError, TypeError) as error:
        raise IdentityError(f"the CA in {folder} cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or (
        key.public_key() != certificate.public_key()
    ):
        raise IdentityError(f"{folder / 'ca.key'} is not the key of {folder / 'ca.crt'}")
    return certificate, key


def _write(
    folder: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> Issued:
    issued = Issued(folder / f"{name}.crt", folder / f"{name}.key")
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    _create_all({issued.key: (secret, 0o600), issued.certificate: (public, 0o644)})
    return issued


def _create_all(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Creates all of them, or none."""
    made: list[Path] = []
    try:
        for path, (content, mode) in files.items():
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            made.append(path)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
    except OSError as error:
        for path in made:
            path.unlink()
        if isinstance(error, FileExistsError):
            raise UsageError(
                f"{error.filename} exists already", hint="move it away, or choose another name"
            ) from None
        raise
