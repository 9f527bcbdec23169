# SPDX-License-Identifier: Apache-2.0
"""What the agent has to remember across its own restarts: nearly nothing.

STATE_DIR/agent.json        {"instance": UUID}      the identity of this state directory
STATE_DIR/groups/GROUP.json {"generation_seen": n, "generation_accepted": n}
STATE_DIR/frozen/GROUP.json {"domains": […], "label": text or null}

Everything else is derived: what to ship from the spool and the receiver's WELCOME, the group's
state from the splitter. So a kill -9 at any moment loses nothing. `generation_seen` is made durable
before anything is done on its account; a lost file means that only the fence of a receiver that
was set back is lost, not data. A file in frozen/ is there from before a group's guests are frozen,
or its `pre` script is run, until they are thawed and `post` was run.

Files are replaced as a whole: after a crash one is the old or the new one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import msgspec

from replicator.base.errors import DamageError
from replicator.base.storage import Storage, read_whole, write_durably

FILE_BYTES_MAX = 64 << 10
_T = TypeVar("_T")


class Identity(msgspec.Struct, frozen=True):
    instance: UUID


class GroupMemory(msgspec.Struct, frozen=True):
    """`generation_accepted`: the highest that this source may feed; None before the first
    receiver was met."""

    generation_seen: int = 0
    generation_accepted: int | None = None


class FrozenNote(msgspec.Struct, frozen=True):
    """These domains may be frozen on our account; the scripts were given `label`."""

    domains: tuple[str, ...]
    label: str | None = None


class AgentMemory:
    """The files under one state directory."""

    def __init__(self, storage: Storage, state_dir: Path) -> None:
        self._storage = storage
        self._directory = state_dir

    def identity(self) -> UUID:
        """The instance, made on the first call ever. Raises DamageError."""
        path = self._directory / "agent.json"
        found = self._read(path, Identity)
        if found is None:
            found = Identity(uuid4())
            self._write(path, found)
        return found.instance

    def group(self, name: str) -> GroupMemory:
        return self._read(self._group_path(name), GroupMemory) or GroupMemory()

    def remember(self, name: str, memory: GroupMemory) -> None:
        """Durable when it returns."""
        self._write(self._group_path(name), memory)

    def frozen(self, name: str) -> FrozenNote | None:
        """None: nothing is to be thawed. Raises DamageError."""
        return self._read(self._frozen_path(name), FrozenNote)

    def frozen_groups(self) -> list[str]:
        """Groups with such a note, also those that the config does not name any more."""
        names = self._storage.names(self._directory / "frozen")
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def note_frozen(self, name: str, note: FrozenNote) -> None:
        """Durable when it returns."""
        self._write(self._frozen_path(name), note)

    def forget_frozen(self, name: str) -> None:
        """A note that a crash brings back costs a thaw too many."""
        if self._storage.exists(self._frozen_path(name)):
            self._storage.unlink(self._frozen_path(name))

    def remembered_groups(self) -> list[str]:
        """Groups of which there is a file of any kind."""
        names = [*self._storage.names(self._directory / "groups"), *self.frozen_groups()]
        return sorted({name.removesuffix(".json") for name in names})

    def forget(self, name: str) -> None:
        """All of a group. Its next life begins as the first."""
        for path in (self._group_path(name), self._frozen_path(name)):
            if self._storage.exists(path):
                self._storage.unlink(path)
                self._storage.sync_directory(path.parent)

    def _frozen_path(self, name: str) -> Path:
        return self._directory / "frozen" / f"{name}.json"

    def _group_path(self, name: str) -> Path:
        return self._directory / "groups" / f"{name}.json"

    def _read(self, path: Path, kind: type[_T]) -> _T | None:
        try:
            data = read_whole(self._storage, path, FILE_BYTES_MAX)
        except FileNotFoundError:
            return None
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DamageError(
                f"{path} cannot be read: {error}",
                hint="remove it if its content is lost; the agent makes a new one",
            ) from error

    def _write(self, path: Path, value: msgspec.Struct) -> None:
        self._storage.make_directory(path.parent)
        write_durably(self._storage, path, msgspec.json.encode(value) + b"\n")
