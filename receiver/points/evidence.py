# SPDX-License-Identifier: Apache-2.0
"""What the parts of a group say about each other when it is opened. No I/O.

Replica, history, inbox, sums, fine and catalog are files that a person, a backup or a broken disk
can exchange one by one. Each is sound by itself; only side by side they can be wrong. So each says
which neighbour it fits:

E1  `disks/applied` (Applied): the replica lies behind batch R of that history, at least
E2  the blocks under the first unapplied frames hold what the history's sums say
E3  sums, catalog and audit have seen numbers and positions; the history must reach that far
E4  the agent remembers the receiver's generation, and refuses one that is lower

R is a lower bound: it is written before the next batch touches the replica, so a batch that a
crash tore is never taken for a history that was put back. While a batch is being applied E1 does
not speak of that one, and E2 does: its frames are in the inbox until the next one is durable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Applied:
    """E1. The replica holds batch `number` of history `history` whole: `position` is where that
    batch ends in the history, `chain` the chain there. Behind it the group was at `next_point` and
    `generation`. `images`: the inode of each image that is known to be the one we wrote; 0 for one
    that is not yet verified. `sums_upto`, `own_sums_upto`: how far the sums on the disk tell of
    batches, at least.

    `is_resting`: no batch behind that one has touched an image. Else one may have, which takes the
    log up to `begun` (ordinal, LSN); (0, 0): it is none of the log. `times`: when each image was
    written, and changed in any way, last (Storage.times), where it rests."""

    history: UUID
    number: int
    position: int
    chain: int
    next_point: int
    generation: int
    images: Mapping[str, int] = field(default_factory=dict)
    sums_upto: int = 0
    own_sums_upto: int = 0
    is_resting: bool = False
    begun: tuple[int, int] = (0, 0)
    times: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reached:
    """E3: how far catalog and audit have seen a group; 0 where they know nothing. `point` is the
    highest number, `position` where its history ended. `by_this_version`: the audit has noted an
    open end, which versions without `disks/applied` do not do."""

    point: int = 0
    generation: int = 0
    position: int = 0
    by_this_version: bool = False

    def with_more(self, other: Reached) -> Reached:
        return Reached(
            max(self.point, other.point),
            max(self.generation, other.generation),
            max(self.position, other.position),
            self.by_this_version or other.by_this_version,
        )


class Line(Enum):
    """E1 beside the history."""

    ABSENT = "absent"  # there is no E1
    FOREIGN = "foreign"  # it is of another group
    HELD = "held"  # the history reaches batch R, and nothing says that it is another R
    OTHER = "other"  # it has another batch R
    BEYOND = "beyond"  # it ends before batch R


class ImageState(Enum):
    """An image of the replica beside the history's word on it."""

    FITS = "fits"
    EXCHANGED = "exchanged"  # another file has its place
    MISSING = "missing"
    OTHER_SIZE = "other size"


class InboxState(Enum):
    """The inbox beside the history's end."""

    FITS = "fits"
    OLDER = "older"  # ends before what is applied
    MISSING = "missing"  # nothing of the open stream is there
    GAP = "gap"  # begins behind what is needed next
    HEADLESS = "headless"  # a later stream without its beginning
    BATCH_GONE = "batch gone"  # a batch that was begun is not applied, and its frames are gone


@dataclass(frozen=True, slots=True)
class Evidence:
    """All of it. `is_empty`: nothing of the group is there at all. `seen_beyond`: E3 has seen more
    than history and inbox hold. `holds_newer`: E2, blocks that hold what comes later; looked for
    where there is no E1, or it vouches for no less than the history's end. `sums_beyond`,
    `fine_beyond`: they tell of what the history does not reach. `foreign`: a folder that holds
    another group's files. `tail`: why the incomplete batch at the history's end cannot be believed
    to have touched nothing."""

    line: Line
    images: Mapping[str, ImageState] = field(default_factory=dict)
    inbox: InboxState = InboxState.FITS
    is_empty: bool = False
    was_vouched: bool = False
    seen_beyond: bool = False
    holds_newer: bool = False
    sums_beyond: bool = False
    fine_beyond: bool = False
    foreign: str = ""
    tail: str = ""
