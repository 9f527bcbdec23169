# SPDX-License-Identifier: Apache-2.0
"""How far a scrub has come, and what the last one found: GROUP/scrub.json.

Not the record of what is damaged (that stands in the history): a file that is lost costs a scrub
that is begun anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from replicator.base.storage import Storage, read_whole, write_durably
from replicator.base.units import MIB

FILE_BYTES_MAX = 64 * MIB
BadPlace = Literal["replica", "image", "history", "sums"]


class Bad(msgspec.Struct):
    """A bad place: `offset` in `file`; what it holds of which disk, where it does; the points that
    cannot be had for it, unless it was healed."""

    where: BadPlace
    file: str
    offset: int
    disk: str = ""
    block_offset: int = 0
    length: int = 0
    points: list[int] = []
    healed: bool = False
    problem: str = ""


class ScrubState(msgspec.Struct):
    """`slot`, `block`: what of the replica comes next; `position`: what of the history. `ended_ns`
    is when the last one ended, 0 while none has; `good_ns` when the last one ended that left
    nothing bad; `cancelled_ns` when the last one was given up by order, unless it ended. Of all bad
    places (`errors`), `left` were not healed; `bad` lists the first."""

    is_running: bool = False
    began_ns: int = 0
    ended_ns: int = 0
    good_ns: int = 0
    cancelled_ns: int = 0
    slot: int = 0
    block: int = 0
    position: int = 0
    replica_bytes: int = 0
    history_bytes: int = 0
    unverified_bytes: int = 0
    errors: int = 0
    left: int = 0
    bad: list[Bad] = []

    @property
    def done_bytes(self) -> int:
        return self.replica_bytes + self.history_bytes

    def anew(self, now_ns: int) -> ScrubState:
        """The first state of a scrub that begins now."""
        return ScrubState(
            is_running=True, began_ns=now_ns, ended_ns=self.ended_ns, good_ns=self.good_ns
        )

    def cancel(self, now_ns: int) -> None:
        """What was found stays on record; the next one begins anew."""
        self.is_running = False
        self.cancelled_ns = now_ns

    def end(self, now_ns: int) -> None:
        self.is_running = False
        self.ended_ns = now_ns
        if not self.left:
            self.good_ns = now_ns


def load_state(storage: Storage, path: Path) -> ScrubState:
    """A file that is not there, or cannot be read, is as good as none."""
    if not storage.exists(path):
        return ScrubState()
    try:
        return msgspec.json.decode(read_whole(storage, path, FILE_BYTES_MAX), type=ScrubState)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ScrubState()


def save_state(storage: Storage, path: Path, state: ScrubState) -> None:
    """Durable when this returns. Raises OSError."""
    write_durably(storage, path, msgspec.json.encode(state))
