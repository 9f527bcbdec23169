# SPDX-License-Identifier: Apache-2.0
"""Points that are not served as true: those of images that are read back first. No I/O.

An image is *unverified* where something says that it may hold another moment than the history does
(receiver.fitting.voucher): it is another file, it lacks some of what was written last, or the batch
behind the newest one may be in it, its frames and its place in the history being gone. Until it has
been read back nothing tells which of its blocks are right.

The rule: **what comes from an unverified image is never served as true.** Nearly every point takes
blocks from the image as it is now: all that nothing has changed since. So it is a whole point that
is refused, if one of its disks is in doubt; points of other disks alone are served. Before-images
are not in doubt: they have checksums of their own, and what a batch takes from an unverified image
is compared with its sum first (receiver.damage.old_content).

    views, restores, rollbacks                       refused, with what is awaited
    views that are open, restores under way          their reads fail, and go on once it is verified
    `points`                                         lists it as unverified

Doubt ends for a disk when a scrub, which begins at once, has read all of its image. What had
another sum than the history says is on record as damage of exactly the points that need it before
that (or healed); what has no sum, because `sums/` is gone, was put on record by the opening
(Opening._is_unproven). So behind doubt there is only what is proven, and what is known to be lost.

A person who cannot wait says so (`--unverified`: views and restores alone, read-only to us). Then
the answer, the list of views and the audit say it too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from receiver.points.values import Point, PointDisk
from replicator.base.errors import UnreachableError

Unverified = Collection[str]
"""Images, by the replica's names."""


def nothing() -> Unverified:
    """Of a group that is believed, and for who takes it as it is."""
    return ()


def of_point(unverified: Unverified, point: Point) -> list[str]:
    """Which of its disks are in doubt."""
    if not unverified:
        return []
    return [member.name for member in point.members if member.image in unverified]


def refuse(unverified: Unverified, point: Point, group: str, *, may_insist: bool) -> None:
    """Raises UnreachableError if the point is not to be served yet. `may_insist`: the order takes
    `--unverified`."""
    if disks := of_point(unverified, point):
        raise UnreachableError(
            f"point {point} of group {group!r} is not verified yet: {_what(disks)} may hold another"
            " moment than its history says, and is being read back",
            hint=_wait(group)
            + ("; `--unverified` takes it as it is, true or not" if may_insist else ""),
        )


def refuse_read(doubt: Callable[[], Unverified], point: Point, disk: PointDisk) -> None:
    """As `refuse`, of a view that is open already."""
    if disk.image in doubt():
        raise UnreachableError(
            f"point {point} is not verified yet: {_what([disk.name])} is being read back",
            hint="reads go on once it is verified",
        )


def warning(disks: Collection[str]) -> str:
    """What who takes it all the same should know; empty where nothing is in doubt."""
    return f"NOT VERIFIED: {_what(disks)} may hold another moment than this" if disks else ""


def awaited(unverified: Unverified) -> str:
    """What a group waits for; empty if it does not."""
    if not unverified:
        return ""
    return (
        f"{_what(sorted(unverified))} is being verified, and its points are not served until then"
    )


def _wait(group: str) -> str:
    return (
        "wait for the scrub that verifies it: `replicator status` shows how far it is, `replicator"
        f" scrub {group} --rate 1GiB` makes it faster"
    )


def _what(disks: Collection[str]) -> str:
    return f"the replica of disk {', '.join(disks)}"
