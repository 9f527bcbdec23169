# SPDX-License-Identifier: Apache-2.0
"""A group's two lanes, and what all that works in them shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from receiver.data_dir.reserve import Room
from receiver.points.figures import GroupFigures
from receiver.tasks.change import Change
from receiver.tasks.lane import Lane


@dataclass(frozen=True, slots=True, kw_only=True)
class Lanes:
    """`intake` writes the inbox, `apply` history and replica."""

    intake: Lane
    apply: Lane
    room: Room
    figures: GroupFigures
    changed: Change
    """Told when frames came, something was applied, or the group has stopped."""
    wake: Callable[[], None]
    """There may be something to apply."""
