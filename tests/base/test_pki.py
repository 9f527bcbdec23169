# SPDX-License-Identifier: Apache-2.0
"""Certificates that real TLS accepts, and what is refused."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from replicator.base.errors import IdentityError, UsageError
from replicator.base.pki import Issued, init_ca, issue


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> dict[str, object]:
    """Mutual TLS over memory; the client's certificate as the server sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    at_client = client.wrap_bio(to_client, to_server, server_hostname=host)
    at_server = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (at_client, at_server, at_client, at_server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return dict(at_server.getpeercert() or {})


def context(folder: Path, mine: Issued, purpose: ssl.Purpose) -> ssl.SSLContext:
    made = ssl.create_default_context(purpose, cafile=str(folder / "ca.crt"))
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(mine.certificate, mine.key)
    return made


def test_an_agent_and_a_receiver_authenticate_each_other(tmp_path: Path) -> None:
    init_ca(tmp_path)
    agent = issue(tmp_path, "kvm1")
    receiver = issue(tmp_path, "dr1", sans=["dr.example.net", "127.0.0.1"])
    client = context(tmp_path, agent, ssl.Purpose.SERVER_AUTH)
    server = context(tmp_path, receiver, ssl.Purpose.CLIENT_AUTH)
    for host in ("dr.example.net", "127.0.0.1", "dr1"):
        seen = handshake(client, server, host)
        assert seen["subjectAltName"] == (("DNS", "kvm1"),)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client, server, "other.example.net")


def test_another_ca_is_refused(tmp_path: Path) -> None:
    init_ca(tmp_path / "a")
    init_ca(tmp_path / "b")
    client = context(tmp_path / "a", issue(tmp_path / "a", "kvm1"), ssl.Purpose.SERVER_AUTH)
    server = context(tmp_path / "b", issue(tmp_path / "b", "dr1"), ssl.Purpose.CLIENT_AUTH)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client, server, "dr1")


def test_an_issued_certificate_cannot_issue(tmp_path: Path) -> None:
    init_ca(tmp_path)
    issued = x509.load_pem_x509_certificate(issue(tmp_path, "kvm1").certificate.read_bytes())
    constraints = issued.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.value.ca, constraints.critical) == (False, True)


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    for made in (init_ca(tmp_path), issue(tmp_path, "kvm1")):
        assert stat.S_IMODE(made.key.stat().st_mode) == 0o600


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    init_ca(tmp_path)
    issue(tmp_path, "kvm1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"ca\.key exists already"):
        init_ca(tmp_path)
    with pytest.raises(UsageError, match=r"kvm1\.key exists already"):
        issue(tmp_path, "kvm1")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_certificate_in_the_way_leaves_no_key_behind(tmp_path: Path) -> None:
    init_ca(tmp_path)
    (tmp_path / "kvm1.crt").write_text("somebody's")
    with pytest.raises(UsageError, match=r"kvm1\.crt exists already"):
        issue(tmp_path, "kvm1")
    assert not (tmp_path / "kvm1.key").exists()
    assert (tmp_path / "kvm1.crt").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("name", "sans"), [("a/b", ()), ("ca", ()), ("a", ("x y",)), ("a", ("",)), ("a", ("é",))]
)
def test_names_that_no_certificate_may_have(
    tmp_path: Path, name: str, sans: tuple[str, ...]
) -> None:
    init_ca(tmp_path)
    with pytest.raises(UsageError):
        issue(tmp_path, name, sans=sans)
    assert {path.name for path in tmp_path.iterdir()} == {"ca.crt", "ca.key"}


def test_a_folder_without_a_ca_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        issue(tmp_path, "kvm1")
    assert caught.value.hint == f"make one with: replicator pki init --dir {tmp_path}"


def test_a_key_of_another_ca_is_noticed(tmp_path: Path) -> None:
    init_ca(tmp_path / "a")
    other = init_ca(tmp_path / "b")
    other.key.replace(tmp_path / "a/ca.key")
    with pytest.raises(IdentityError, match="is not the key of"):
        issue(tmp_path / "a", "kvm1")


def test_a_damaged_ca_is_a_sentence(tmp_path: Path) -> None:
    init_ca(tmp_path).key.write_text("not a key")
    with pytest.raises(IdentityError, match="cannot be read"):
        issue(tmp_path, "kvm1")
