# SPDX-License-Identifier: Apache-2.0
"""`python -m agent.drivers.libvirt.thaw --uri URI --freeze-timeout-ns N DOMAIN…`: the watchdog.

Thaws libvirt domains through their guest agents, for as long as agent.quiesce.watchdog says. Each
domain has a connection of its own, opened before the agent may freeze anything, and opened again
when libvirtd was restarted.

A domain that libvirt does not know, or that does not run, is gone, and so is its freeze. One whose
guest agent does not answer may be frozen: that is tried again, until it answers or the guest ends.
"""

from __future__ import annotations

import argparse
import sys

import libvirt

from agent.quiesce.watchdog import ThawError, run


class DomainThaw:
    """Thaws by name; each name is used by one thread alone."""

    def __init__(self, uri: str, domains: list[str]) -> None:
        self._uri = uri
        self._connections = {name: libvirt.open(uri) for name in domains}

    def __call__(self, domain: str) -> int:
        try:
            return self._thaw(self._connection(domain), domain)
        except libvirt.libvirtError as error:
            raise ThawError(error.get_error_message() or str(error)) from error

    def _connection(self, domain: str) -> libvirt.virConnect:
        connection = self._connections[domain]
        if not connection.isAlive():
            connection = self._connections[domain] = libvirt.open(self._uri)
        return connection

    def _thaw(self, connection: libvirt.virConnect, name: str) -> int:
        try:
            domain = connection.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return 0
            raise
        try:
            return int(domain.fsThaw())
        except libvirt.libvirtError:
            if not domain.isActive():
                return 0
            raise


def main() -> int:
    parser = argparse.ArgumentParser(prog="thaw", description="Thaws guests.")
    parser.add_argument("--uri", required=True)
    parser.add_argument("--freeze-timeout-ns", type=int, required=True)
    parser.add_argument("domains", nargs="+", metavar="DOMAIN")
    given = parser.parse_args()
    libvirt.registerErrorHandler(lambda *_: None, None)
    try:
        thaw = DomainThaw(given.uri, given.domains)
    except libvirt.libvirtError as error:
        print(f"thaw watchdog: libvirt is not reachable: {error}", file=sys.stderr)
        return 75
    run(given.domains, given.freeze_timeout_ns, thaw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
