# SPDX-License-Identifier: Apache-2.0
"""What a valid config does not fit on this machine: warnings, and files that must be there.

The file is right or wrong by itself (`load_agent`, `load_receiver`); this looks at folders,
groups and certificates as they are now. Warnings never stop a daemon. Missing credentials stop
those who need them: agent and receiver ask for them with `require_credentials`, the splitter does
not, because it must serve guests whatever is wrong with a certificate.
"""

from __future__ import annotations

import grp
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from replicator.base.errors import UsageError
from replicator.base.units import format_size
from replicator.config.agent import AgentConfig, ReceiverLink, SplitterSection
from replicator.config.receiver import ReceiverConfig, ReceiverSection

MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs"})
MOUNT_TABLE = Path("/proc/self/mountinfo")


def agent_warnings(config: AgentConfig) -> list[str]:
    """One sentence each, beginning with the place in the file."""
    return [
        *_splitter_warnings(config.splitter),
        *_credential_warnings(config.receiver),
        *(() if config.groups else ("group: there is none, so nothing is protected",)),
        *_shared_fate_warnings(config),
    ]


def receiver_warnings(config: ReceiverConfig) -> list[str]:
    return [
        *_memory_warnings("receiver.data_dir", config.receiver.data_dir),
        *_credential_warnings(config.receiver),
        *(() if config.groups else ("group: there is none, so no agent may connect",)),
    ]


def _shared_fate_warnings(config: AgentConfig) -> Iterator[str]:
    """A group is cut as a whole, so it is protected as a whole."""
    for number, group in enumerate(config.groups):
        domains = list(dict.fromkeys(disk.domain for disk in group.disks if disk.domain))
        if len(domains) > 1:
            yield (
                f"group[{number}]: {group.name} holds disks of {len(domains)} domains"
                f" ({', '.join(domains)}): while one of them is off, none of the others is"
                " protected"
            )


def spool_warnings(splitter: SplitterSection) -> list[str]:
    """Those that concern the splitter alone, for its own start."""
    return [*_splitter_warnings(splitter), *_unwritable_warnings(splitter)]


def require_credentials(link: ReceiverLink | ReceiverSection) -> None:
    """Raises UsageError where CA, certificate or key cannot be read."""
    for fault, error in _unreadable_credentials(link):
        if isinstance(error, FileNotFoundError):
            raise UsageError(fault, hint="replicator pki init and pki issue make them")
        raise UsageError(fault, hint="the user that this daemon runs as must be able to read it")


def filesystem_type(path: Path, mountinfo: str) -> str | None:
    """What `path`, or the nearest folder above it that exists, lies on; None if it is not told.

    By device number and not by mount point: that is right for bind mounts, mounts on top of each
    other and symbolic links. Only systems that number each volume anew (btrfs) are not told;
    tmpfs always is.
    """
    device = _device(path)
    for line in mountinfo.splitlines():
        # ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG]... - TYPE SOURCE OPTIONS
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [device] and rest:
            return rest.split()[0]
    return None


def _device(path: Path) -> str:
    number = nearest_existing(path).stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def nearest_existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def is_on_memory(path: Path) -> bool | None:
    """None where this machine does not let us look."""
    try:
        table = MOUNT_TABLE.read_text(errors="surrogateescape")
        return filesystem_type(path, table) in MEMORY_FILESYSTEMS
    except OSError:
        return None


def _splitter_warnings(splitter: SplitterSection) -> Iterator[str]:
    place, folder = "splitter.spool_memory_dir", splitter.spool_memory_dir
    on_memory = is_on_memory(folder)
    if on_memory is False:
        yield f"{place}: {folder} is not on tmpfs, so guest writes will wait for a disk"
    elif on_memory:
        room = os.statvfs(nearest_existing(folder))
        total = room.f_blocks * room.f_frsize
        if 0 < total < splitter.spool_memory_bytes:
            wanted, most = format_size(splitter.spool_memory_bytes), format_size(total)
            yield f"splitter.spool_memory: {wanted}, but {folder} holds {most} at most"
    if splitter.spool_disk_bytes:
        yield from _memory_warnings("splitter.spool_disk_dir", splitter.spool_disk_dir)
    if splitter.socket_mode & 0o007:
        yield (
            f"splitter.socket_mode: {splitter.socket_mode:04o} lets every user of this machine "
            "write to the disks' logs"
        )
    if splitter.socket_group and not _is_group(splitter.socket_group):
        yield f"splitter.socket_group: there is no group {splitter.socket_group!r} here"


def _unwritable_warnings(splitter: SplitterSection) -> Iterator[str]:
    """For the splitter's own user: said at the start, and not when the tier is needed."""
    folders = {"spool_memory_dir": splitter.spool_memory_dir}
    if splitter.spool_disk_bytes:
        folders["spool_disk_dir"] = splitter.spool_disk_dir
    for key, folder in folders.items():
        if not os.access(nearest_existing(folder), os.W_OK | os.X_OK):
            yield f"splitter.{key}: {folder} cannot be written by the splitter's user"


def _memory_warnings(place: str, folder: Path) -> Iterator[str]:
    if is_on_memory(folder):
        yield f"{place}: {folder} is on tmpfs, so a power cut empties it"


def _is_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _credential_warnings(link: ReceiverLink | ReceiverSection) -> Iterator[str]:
    for fault, _error in _unreadable_credentials(link):
        yield fault
    with suppress(OSError):
        if link.key.stat().st_mode & 0o007:
            yield f"receiver.key: {link.key} is open to every user of this machine"


def _unreadable_credentials(
    link: ReceiverLink | ReceiverSection,
) -> Iterator[tuple[str, OSError]]:
    for key, path in (("ca", link.ca), ("certificate", link.certificate), ("key", link.key)):
        try:
            path.open("rb").close()
        except OSError as error:
            yield f"receiver.{key}: {path}: {error.strerror}", error
