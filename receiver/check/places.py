# SPDX-License-Identifier: Apache-2.0
"""Which histories a path names: a data_dir, a group's directory, its `history`, or a copy of
any of these. Looks at names alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from journal.segment import HEADER_BYTES, SegmentKind, parse_header
from journal.spool import SegmentFile, StreamName, list_segments, list_streams, stream_name
from replicator.base.errors import DamageError, NotFoundError, UsageError, VersionError
from replicator.base.storage import Storage


@dataclass(frozen=True, slots=True)
class HistoryPlace:
    """A history's segments in `directory/STREAM`. `group` is what its segments say, the name of
    the directory above where they are unreadable. `data_dir`: the one it was found in, if any."""

    group: str
    directory: Path
    stream: StreamName
    data_dir: Path | None = None

    @property
    def folder(self) -> Path:
        return self.directory / self.stream.directory

    @property
    def group_dir(self) -> Path:
        return self.directory.parent

    def segments(self, storage: Storage) -> list[SegmentFile]:
        return list_segments(storage, [self.directory], self.stream)


def find_histories(storage: Storage, path: Path) -> list[HistoryPlace]:
    """At least one. Raises NotFoundError."""
    if not storage.exists(path):
        raise NotFoundError(f"{path}: no such file or directory")
    path = path.absolute()
    found = (
        _in_data_dir(storage, path)
        or _in_history(storage, path / "history", None)
        or _in_history(storage, path, None)
    )
    if not found and stream_name(path.name) is not None:
        found = [place for place in _in_history(storage, path.parent, None) if place.folder == path]
    if not found:
        raise NotFoundError(
            f"{path}: there is no history",
            hint="name a data_dir, DATA_DIR/groups/GROUP, or a copy of its directory `history`",
        )
    return found


def histories_of(storage: Storage, data_dir: Path) -> list[HistoryPlace]:
    """Of all groups; none is no error."""
    return _in_data_dir(storage, data_dir.absolute())


def the_history(storage: Storage, path: Path) -> HistoryPlace:
    """The only one there. Raises NotFoundError, UsageError."""
    found = find_histories(storage, path)
    if len(found) > 1:
        names = ", ".join(place.group for place in found)
        raise UsageError(
            f"{path} holds the histories of several groups: {names}",
            hint="name DATA_DIR/groups/GROUP",
        )
    return found[0]


def _in_data_dir(storage: Storage, path: Path) -> list[HistoryPlace]:
    groups = path / "groups"
    return [
        place
        for name in storage.names(groups)
        for place in _in_history(storage, groups / name / "history", path)
    ]


def _in_history(storage: Storage, directory: Path, data_dir: Path | None) -> list[HistoryPlace]:
    if data_dir is None and directory.name == "history":
        above = directory.parent.parent
        data_dir = above.parent if above.name == "groups" else None
    return [
        HistoryPlace(_group_of(storage, directory, stream), directory, stream, data_dir)
        for stream in list_streams(storage, [directory])
    ]


def _group_of(storage: Storage, directory: Path, stream: StreamName) -> str:
    for segment in list_segments(storage, [directory], stream):
        file = storage.open(segment.path)
        try:
            header = parse_header(file.pread(HEADER_BYTES, 0), str(segment.path))
        except (DamageError, VersionError):
            continue
        finally:
            file.close()
        if header.kind is SegmentKind.HISTORY:
            return header.group
    return directory.parent.name
