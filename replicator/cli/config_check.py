# SPDX-License-Identifier: Apache-2.0
"""`config check`: whether a file is right, and whether a daemon could start with it here.

*Refusals* are what the daemon's own start would end with, found by the very checks that it makes,
and nothing is written. *Warnings* are what it would start with all the same, and a person had
better know: dates and names of certificates, domains that libvirt does not have, scripts that are
not there, a budget that the disk cannot hold, a splitter that was started with other groups.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from replicator.base.certificates import pair_warnings, read_certificates, require_own_name
from replicator.base.errors import IdentityError, ReplicatorError, UsageError
from replicator.base.units import format_size
from replicator.config import AgentConfig, ReceiverConfig
from replicator.config.environment import (
    agent_warnings,
    nearest_existing,
    receiver_warnings,
    require_credentials,
)
from replicator.control.splitter import AgentSide, ProtocolError, SplitterStatus, Subscribe

SPLITTER_SECONDS = 2.0
READ_BYTES = 1 << 16


def refusals(config: AgentConfig | ReceiverConfig) -> list[ReplicatorError]:
    """What a start would end with, each with the exit code that it would have."""
    checks = _agent_checks(config) if isinstance(config, AgentConfig) else _receiver_checks(config)
    found = []
    for check in checks:
        try:
            check()
        except ReplicatorError as error:
            found.append(error)
        except OSError as error:
            found.append(UsageError(f"{error.filename}: {error.strerror}"))
    return found


def warnings(config: AgentConfig | ReceiverConfig) -> list[str]:
    """One sentence each, beginning with the place in the file."""
    now = datetime.now(UTC)
    link = config.receiver
    dated = list(pair_warnings(link.ca, link.certificate, now))
    if isinstance(config, AgentConfig):
        return [
            *agent_warnings(config),
            *dated,
            *_script_warnings(config),
            *_libvirt_warnings(config),
            *_splitter_warnings(config),
        ]
    return [
        *receiver_warnings(config),
        *dated,
        *_nameless_warnings(config),
        *_budget_warnings(config),
    ]


# -- what stops a start


def _agent_checks(config: AgentConfig) -> Iterator[Callable[[], object]]:
    from replicator.wire.identity import client_context

    link = config.receiver
    try:
        require_credentials(link)
    except UsageError as error:
        yield _raising(error)
        return
    yield lambda: client_context(link.ca, link.certificate, link.key)
    yield lambda: require_own_name(link.certificate, config.agent.name)


def _receiver_checks(config: ReceiverConfig) -> Iterator[Callable[[], object]]:
    from receiver.data_dir.layout import require_known_format
    from receiver.data_dir.reserve import check_room
    from replicator.base.storage import SystemStorage
    from replicator.wire.identity import server_context

    section, storage = config.receiver, SystemStorage()
    try:
        require_credentials(section)
    except UsageError as error:
        yield _raising(error)
    else:
        yield lambda: server_context(section.ca, section.certificate, section.key)
    yield lambda: require_known_format(storage, section.data_dir)
    yield lambda: check_room(storage, nearest_existing(section.data_dir))


def _raising(error: ReplicatorError) -> Callable[[], object]:
    def check() -> None:
        raise error

    return check


# -- what does not


def _nameless_warnings(config: ReceiverConfig) -> Iterator[str]:
    path = config.receiver.certificate
    with suppress(IdentityError, OSError):
        if not read_certificates(path).names:
            yield f"receiver.certificate: {path} names no host, so no agent accepts it"


def _budget_warnings(config: ReceiverConfig) -> Iterator[str]:
    """Replicas come on top of it; how large they are, no one knows before they come."""
    room = os.statvfs(nearest_existing(config.receiver.data_dir))
    total = room.f_blocks * room.f_frsize
    budget = sum(int(config.history_of(group).max_bytes) for group in config.groups)
    if budget > total:
        yield (
            f"history.max_bytes: the histories of {len(config.groups)} groups may take "
            f"{format_size(budget)}, and the disk of {config.receiver.data_dir} holds "
            f"{format_size(total)}, replicas included"
        )


def _script_warnings(config: AgentConfig) -> Iterator[str]:
    for at, group in enumerate(config.groups):
        scripts = {"quiesce_pre": group.quiesce_pre, "quiesce_post": group.quiesce_post}
        for key, command in scripts.items():
            if not command:
                continue
            place, path = f"group[{at}].{key}", Path(command[0])
            if not path.is_file():
                yield f"{place}: there is no {path}"
            elif not os.access(path, os.X_OK):
                yield f"{place}: {path} may not be executed"


def _libvirt_warnings(config: AgentConfig) -> list[str]:
    groups = [group for group in config.groups if group.driver == "libvirt"]
    if not groups:
        return []
    try:
        from agent.drivers.libvirt.survey import survey
    except ModuleNotFoundError as error:
        if error.name not in ("libvirt", "libvirtmod"):
            raise
        return ["libvirt.uri: libvirt-python is missing: pip install 'replicator[libvirt]'"]
    return survey(config.libvirt.uri, config.groups)


def _splitter_warnings(config: AgentConfig) -> Iterator[str]:
    """A running splitter knows the groups that it was started with."""
    status = _splitter_status(config.splitter.control)
    if status is None:
        return
    running = {group.name for group in status.groups}
    wanted = {group.name for group in config.groups}
    for name in sorted(wanted - running):
        yield f"group: the running splitter does not know group {name!r}, which is new in this file"
    for name in sorted(running - wanted):
        yield f"group: the running splitter serves group {name!r}, which is not in this file"


def _splitter_status(path: Path) -> SplitterStatus | None:
    """The first status of whoever serves that socket; None without one in time."""
    side = AgentSide()
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(SPLITTER_SECONDS)
        try:
            link.connect(str(path))
            link.sendall(side.send(Subscribe(id=side.next_id())))
            while data := link.recv(READ_BYTES):
                for event in side.receive_data(data):
                    if isinstance(event, SplitterStatus):
                        return event
        except (OSError, ProtocolError):
            return None
    return None
