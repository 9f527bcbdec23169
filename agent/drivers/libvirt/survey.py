# SPDX-License-Identifier: Apache-2.0
"""Whether libvirt has the disks that a configuration names, and whether they can be protected.

For `replicator config check`, before an agent is started: read-only, by itself, in bounded time. A
libvirt that cannot be reached is one sentence and no fault: it may start later. None is started by
asking (`LIBVIRT_AUTOSTART`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import libvirt

from agent.drivers.libvirt.domain_xml import parse_domain, require_supported
from replicator.base.errors import ReplicatorError
from replicator.config.agent import GroupConfig

LIMIT_SECONDS = 10.0


def survey(uri: str, groups: Sequence[GroupConfig]) -> list[str]:
    """One sentence for each group's disk that is not there or cannot be protected, beginning with
    its place in the file; or one for a libvirt that does not answer."""
    found: list[str] = []
    failure: list[str] = []

    def ask() -> None:
        os.environ["LIBVIRT_AUTOSTART"] = "0"
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        try:
            connection = libvirt.openReadOnly(uri)
        except libvirt.libvirtError as error:
            failure.append(error.get_error_message() or str(error))
            return
        try:
            found.extend(_disks(connection, groups))
        except libvirt.libvirtError as error:
            failure.append(error.get_error_message() or str(error))
        finally:
            connection.close()

    asking = threading.Thread(target=ask, name="libvirt-survey", daemon=True)
    asking.start()
    asking.join(LIMIT_SECONDS)
    if asking.is_alive():
        return [f"libvirt.uri: {uri} does not answer within {LIMIT_SECONDS:.0f} s"]
    if failure:
        return [f"libvirt.uri: {uri} cannot be asked for the domains: {failure[0]}"]
    return found


def _disks(connection: libvirt.virConnect, groups: Sequence[GroupConfig]) -> list[str]:
    found = []
    for at, group in enumerate(groups):
        for number, disk in enumerate(group.disks):
            if group.driver != "libvirt":
                continue
            problem = _problem(connection, str(disk.domain), str(disk.target))
            if problem:
                found.append(f"group[{at}].disk[{number}]: {problem}")
    return found


def _problem(connection: libvirt.virConnect, domain: str, target: str) -> str:
    """Why the agent could not protect this disk; empty if it could."""
    try:
        handle = connection.lookupByName(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        return f"libvirt knows no domain {domain!r}"
    try:
        facts = parse_domain(handle.XMLDesc())
        require_supported(facts, facts.disk(target))
    except ReplicatorError as error:
        return str(error)
    return ""
