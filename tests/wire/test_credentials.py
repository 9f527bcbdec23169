# SPDX-License-Identifier: Apache-2.0
"""Certificates that are rotated under a running daemon."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from replicator.base import pki
from replicator.base.address import Address
from replicator.base.clock import SystemClock
from replicator.base.errors import IdentityError, ReplicatorError
from replicator.wire.credentials import DAY_SECONDS, Credentials
from replicator.wire.identity import client_context, server_context
from replicator.wire.link import Link
from replicator.wire.transport import TcpConnector, serve_wire

HOST = "localhost"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CA in `one` and another in `two`, each with certificates for a receiver and an agent; the
    files in use are those of `one`."""
    for name in ("one", "two"):
        pki.init_ca(tmp_path / name)
        pki.issue(tmp_path / name, HOST)
        pki.issue(tmp_path / name, "kvm1")
    for name in ("ca.crt", *(f"{who}.{kind}" for who in (HOST, "kvm1") for kind in ("crt", "key"))):
        shutil.copy(tmp_path / "one" / name, tmp_path / name)
    return tmp_path


def of_receiver(folder: Path) -> Credentials:
    files = [folder / name for name in ("ca.crt", f"{HOST}.crt", f"{HOST}.key")]
    return Credentials(server_context, *files)


def of_agent(folder: Path) -> Credentials:
    files = [folder / name for name in ("ca.crt", "kvm1.crt", "kvm1.key")]
    return Credentials(client_context, *files)


def put(source: Path, there: Path) -> None:
    """As people do it: a new file takes the old one's name."""
    fresh = there.with_suffix(".new")
    shutil.copy(source, fresh)
    os.replace(fresh, there)


def test_files_that_did_not_change_are_left_alone(folder: Path) -> None:
    found = of_agent(folder)
    before = found.tls()
    assert not found.refresh()
    assert found.tls() is before


def test_half_a_pair_keeps_the_old_one_until_the_other_half_comes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = of_agent(folder)
    before, old_end = found.tls(), found.not_after
    os.unlink(folder / "one" / "kvm1.crt")
    os.unlink(folder / "one" / "kvm1.key")
    pki.issue(folder / "one", "kvm1", days=90)
    put(folder / "one" / "kvm1.crt", folder / "kvm1.crt")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert not found.refresh()
    assert [each.message for each in caplog.records] == ["credentials.kept"]
    assert (found.tls(), found.not_after) == (before, old_end)
    assert "are no certificate and its key" in found.problem
    assert "not the one on the disk" in found.warning
    with pytest.raises(IdentityError):
        found.refresh(at_once=True)
    with pytest.raises(IdentityError):
        found.check((folder / "ca.crt", folder / "kvm1.crt", folder / "kvm1.key"))
    put(folder / "one" / "kvm1.key", folder / "kvm1.key")
    assert found.refresh()
    assert found.tls() is not before
    assert found.not_after < old_end
    assert (found.problem, found.warning) == ("", "")


@pytest.mark.parametrize("name", ["ca.crt", "kvm1.crt", "kvm1.key"])
def test_a_file_that_goes_or_is_no_certificate_keeps_the_old_one(folder: Path, name: str) -> None:
    found = of_agent(folder)
    before = found.tls()
    kept = (folder / name).read_bytes()
    (folder / name).unlink()
    assert not found.refresh()
    assert name in found.problem
    (folder / name).write_text("rubbish")
    assert not found.refresh()
    assert found.tls() is before
    (folder / name).write_bytes(kept)
    assert found.refresh()
    assert not found.problem


def test_what_expires_soon_is_said_once_a_day(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for suffix in ("crt", "key"):
        (folder / "one" / f"kvm1.{suffix}").unlink()
    pki.issue(folder / "one", "kvm1", days=3)
    for suffix in ("crt", "key"):
        put(folder / "one" / f"kvm1.{suffix}", folder / f"kvm1.{suffix}")
    found = of_agent(folder)
    assert found.warning.startswith("the certificate expires on ")
    with caplog.at_level(logging.WARNING):
        for hour in range(49):
            found.look(hour * DAY_SECONDS / 24)
    assert [each.message for each in caplog.records] == ["credentials.warning"] * 3


async def test_a_rotation_of_everything_reaches_the_next_connection_and_no_standing_one(
    folder: Path,
) -> None:
    receiver, agent = of_receiver(folder), of_agent(folder)
    links: list[Link] = []

    async def session(link: Link) -> None:
        links.append(link)
        await link.wait_closed()

    server = await serve_wire(Address(HOST, 0), receiver.tls, session, clock=SystemClock())
    connector = TcpConnector(Address(HOST, server.port), agent.tls, SystemClock())
    standing = await connector.connect()
    for name in ("ca.crt", f"{HOST}.crt", f"{HOST}.key"):
        put(folder / "two" / name, folder / name)
    assert receiver.refresh()
    with pytest.raises(ReplicatorError):  # the agent still has the old CA
        await (await connector.connect()).receive()
    for name in ("kvm1.crt", "kvm1.key"):
        put(folder / "two" / name, folder / name)
    assert agent.refresh()
    after = await connector.connect()
    assert standing.fault is None
    for link in (standing, after):
        link.close()
        await link.wait_closed()
    server.close()
    await server.wait_closed()
