# SPDX-License-Identifier: Apache-2.0
"""Who may feed which group. No I/O.

A certificate of the operator's CA proves that its holder is one of the names in it. The hello
claims one name; that one must be among them, and the group's `agents` must hold it. The claim
alone is worth nothing, and a valid certificate alone neither: it feeds only its own groups.

What a refused peer is told is no more than it said itself: whether a group exists is told only
to an agent that proved its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from receiver.retention.earlier_images import EARLIER_MAX
from replicator.base.errors import IdentityError, NotFoundError, ReplicatorError
from replicator.base.units import format_size
from replicator.wire.messages import Hello

OTHER_SIZE = (
    "put the disk into a group of another name at both ends: that one begins anew, and the points"
    " of this one stay"
)
TOO_MANY = "`replicator points drop {group} --older-than AGE` lets go of the oldest"


def check_hello(
    hello: Hello, certificate_names: Sequence[str], agents_of: Mapping[str, Sequence[str]]
) -> None:
    """`agents_of` is the config: which agents may feed each group. Raises IdentityError,
    NotFoundError."""
    if hello.agent not in certificate_names:
        held = ", ".join(certificate_names[:8]) or "no DNS name at all"
        raise IdentityError(
            f"an agent calls itself {hello.agent!r}, but its certificate names {held}",
            hint="[agent] name must be one of the DNS names of the agent's certificate",
        )
    agents = agents_of.get(hello.group)
    if agents is None:
        raise NotFoundError(
            f"this receiver has no group {hello.group!r}",
            hint="name it in a [[group]] of receiver.toml, with the agents that may feed it",
        )
    if hello.agent not in agents:
        raise IdentityError(
            f"agent {hello.agent!r} may not feed group {hello.group!r}",
            hint="add it to the group's `agents` in receiver.toml if it should",
        )


def check_disks(
    hello: Hello, sizes: Mapping[str, int], earlier: Mapping[str, Sequence[int]]
) -> None:
    """`sizes` are those of the replica's disks, `earlier` those of instances that are kept beside
    them. Of a libvirt disk another size is news: it has been resized, and becomes a new instance.
    That of an external disk is what the source's configuration says, and may be a slip of the pen.
    Raises ReplicatorError."""
    for disk in hello.disks:
        size = sizes.get(disk.name)
        if size is None or size == disk.size:
            continue
        if hello.driver == "external":
            raise ReplicatorError(
                f"disk {disk.name!r} of group {hello.group!r} has {_size(disk.size)} at the source,"
                f" but its replica has {_size(size)}",
                hint=OTHER_SIZE,
            )
        if sum(map(len, earlier.values())) >= EARLIER_MAX:
            raise ReplicatorError(
                f"disk {disk.name!r} of group {hello.group!r} has been resized to"
                f" {_size(disk.size)}, and images of {EARLIER_MAX} earlier sizes are kept already",
                hint=TOO_MANY.format(group=hello.group),
            )


def _size(size_bytes: int) -> str:
    return f"{size_bytes} bytes ({format_size(size_bytes)})"
