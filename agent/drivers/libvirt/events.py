# SPDX-License-Identifier: Apache-2.0
"""What libvirt's events tell, in our own values. No I/O.

Events are lost while this process or libvirtd is away. So what they tell of the present is only a
reason to look: the live XML is the truth about a job, the domain's state about whether it runs. But
some of them are the only trace of something that is over when one looks: that a domain had
stopped and was started again, that a guest's write failed. Those are kept (watch.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

IoAction = Literal["none", "pause", "report"]


class Turn(Enum):
    """What became of a domain. OTHER: nothing that its disks feel (defined, resumed …)."""

    STARTED = "started"
    STOPPED = "stopped"
    PAUSED = "paused"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Lifecycle:
    turn: Turn


@dataclass(frozen=True, slots=True)
class CopyNews:
    """Of the block job on a disk. What it is, the live XML says; but that it `failed` has no other
    trace. libvirt does not tell by what."""

    target: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class IoError:
    """An operation of the guest has failed on the host. With `pause` the guest was stopped, and it
    will be done again; else the guest got the error, or is told a lie, and goes on. `path` and
    `alias` name the disk; libvirt (9.0) gives neither for a network disk."""

    path: str
    alias: str
    action: IoAction


Event = Lifecycle | CopyNews | IoError
