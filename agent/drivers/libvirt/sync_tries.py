# SPDX-License-Identifier: Apache-2.0
"""When a disk's sync is tried again after it failed. No I/O.

A try begins with a block copy. It has failed when another is asked for: its sync was void, or the
copy ended before it had sent anything. To end an old copy (EndCopy) has failed when libvirt still
shows it afterwards. Each failure in a row waits longer (agent.retrying.backoff); what ends the row
is the driver's to say. A driver that has just started has tried nothing yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.drivers.libvirt.plan import BeginSync, EndCopy, StartCopy
from agent.retrying.backoff import Backoff
from replicator.control.splitter import SplitterGroupStatus

RETRY_FIRST_SECONDS = 1.0
RETRY_LIMIT_SECONDS = 60.0
# libvirt does not tell why; writes to the splitter fail for reasons that the splitter has told.
FAILED = "QEMU gave the copy up, as after an error in reading the source (see the domain's log)"


@dataclass(slots=True)
class _Tries:
    """`begun`: one is under way, as far as this driver has done anything for it."""

    what: str
    backoff: Backoff = field(
        default_factory=lambda: Backoff(RETRY_FIRST_SECONDS, RETRY_LIMIT_SECONDS)
    )
    begun: bool = False

    def again(self, why: str, now: float) -> float:
        """Another try is asked for: the seconds until it may begin."""
        if self.begun:
            self.begun = False
            self.backoff.failed(why, now)
        return self.backoff.left(now)


def void_of(group: SplitterGroupStatus, disk: str) -> str:
    """Why the disk's sync is void; empty also of a disk that the splitter does not know: one that
    was started anew knows none, and copies of before may be shown all the same."""
    return next((one.void for one in group.disks if one.name == disk), "")


class SyncTries:
    """Those of one group's disks, by name."""

    def __init__(self) -> None:
        self._copies: dict[str, _Tries] = {}
        self._ends: dict[str, _Tries] = {}

    def clear(self) -> None:
        """All is well, or a person wants it tried now."""
        self._copies.clear()
        self._ends.clear()

    def begin_stream(self) -> None:
        """What was begun in the stream before ended with it, for a reason of its own."""
        for tries in self._copies.values():
            tries.begun = False

    def begun(self, step: StartCopy | EndCopy) -> None:
        """It is done now. A copy that can be begun shows that none before is left."""
        name = step.disk.name
        if isinstance(step, EndCopy):
            self._of_end(name).begun = True
        else:
            self._of_copy(name).begun = True
            self._ends.pop(name, None)

    def left(
        self,
        step: BeginSync | StartCopy | EndCopy,
        group: SplitterGroupStatus,
        now: float,
        *,
        failed: bool = False,
    ) -> float:
        """The seconds until this step may be done. `failed`: libvirt has told that the last copy
        ended by an error."""
        name = step.disk.name
        if isinstance(step, EndCopy):
            return self._of_end(name).again("libvirt still shows it", now)
        why = void_of(group, name) or "its block copy ended before it had sent anything"
        if failed:
            why = f"{why}; {FAILED}"
        return self._of_copy(name).again(why, now)

    def said_of(self, step: BeginSync | StartCopy | EndCopy, now: float) -> str:
        """Why this step waits."""
        name = step.disk.name
        tries = self._of_end(name) if isinstance(step, EndCopy) else self._of_copy(name)
        return tries.backoff.said(tries.what, now)

    def said(self, group: SplitterGroupStatus, now: float) -> str:
        """What is tried again, and why, of the disks that are not complete."""
        unfinished = [disk.name for disk in group.disks if disk.state != "complete"]
        found = [tries[name] for name in unfinished for tries in self._all() if name in tries]
        said = [one.backoff.said(one.what, now) for one in found]
        return "; ".join(filter(None, said))

    def _all(self) -> tuple[dict[str, _Tries], ...]:
        return (self._ends, self._copies)

    def _of_end(self, disk: str) -> _Tries:
        return self._ends.setdefault(disk, _Tries(f"ending the old block copy of {disk}"))

    def _of_copy(self, disk: str) -> _Tries:
        return self._copies.setdefault(disk, _Tries(f"syncing {disk}"))
