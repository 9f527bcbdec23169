# SPDX-License-Identifier: Apache-2.0
"""Telling others what happened in a group: the operator, and the catalog. No I/O of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from receiver.points.values import GroupEvent
from replicator.base.errors import DamageError


class Telling:
    """`notify` gets the events. Called from both threads of the group."""

    def __init__(self, group: str, notify: Callable[[GroupEvent], None]) -> None:
        self.group = group
        self._notify = notify

    def event(self, name: str, **fields: object) -> None:
        self._notify(GroupEvent(name, self.group, fields))

    def compaction_failed(self, error: DamageError | OSError) -> None:
        """Nothing is lost by that but the room it would have gained; points that need what
        cannot be read are found by whoever reads them."""
        self.event("compaction.failed", error=str(error))

    def set_aside(self, path: Path, kept: Path) -> None:
        """An image of another size lay where one had to be made."""
        self.event("replica.set_aside", file=str(path), kept_as=str(kept))

    def index(self, write: Callable[[], object]) -> None:
        """Writes to the catalog, which is an index: a failure of it is told, and stops nothing."""
        try:
            write()
        except sqlite3.Error as error:
            self.event("catalog.failed", error=str(error))
