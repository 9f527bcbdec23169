# SPDX-License-Identifier: Apache-2.0
"""Leftovers: data of groups that the configuration does not name, and the order to forget them.

A group that left the configuration is not deleted. Its folder stays as it is, takes room that is in
no group's budget, and is there again when the group comes back. `status` says so, with its size.

`forget` removes such a group for good, and no other way does:

1. Its lock is asked for: the longer of what stands in its history and of `min_lock`. Points that
   are younger refuse the order, and so does a history that cannot be read, since then nobody knows;
   unless the order breaks the lock, with a reason.
2. Its folder is moved to DATA_DIR/forgotten, durably, in the step in which it is made sure that the
   configuration has not got it back. From here on there is no such group.
3. The catalog lets go of it. What the audit saw of its history counts no more
   (receiver.audit.heads): the order itself stands in the audit, with who gave it and why.
4. Its files are deleted. What a crash leaves of them goes at the next start.

Concurrency: the event loop; what may take long is done in threads. Failure: after a crash there is
either the whole leftover, or a rest in `forgotten` that is nobody's.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from receiver.audit.watch import HistoryWatch
from receiver.catalog import Catalog
from receiver.check.places import find_histories
from receiver.counted.ages import AgeClock
from receiver.data_dir.layout import forgotten_dir, groups_dir
from receiver.offline.reading import BareIndex, read_index
from receiver.retention.stamps import mended, moved
from receiver.retention.thinning import end_ns
from replicator.base.errors import DamageError, NotFoundError, OwnedError, UsageError, VersionError
from replicator.base.names import is_name
from replicator.base.storage import Storage
from replicator.base.trees import tree_bytes
from replicator.base.trouble import words_of
from replicator.control.requests import ForgetRequest
from replicator.control.types import ForgetResult, Leftover

MEASURE_SECONDS = 300.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Past:
    """What a leftover's history says. `trouble`: why it says nothing."""

    points: int = 0
    locked: int = 0
    trouble: str = ""


class Leftovers:
    """See the head of this file. `groups` are those of the configuration, `min_lock_ns` its."""

    def __init__(
        self,
        storage: Storage,
        data_dir: Path,
        groups: Mapping[str, object],
        catalog: Catalog,
        watch: HistoryWatch,
        clock: AgeClock,
        min_lock_ns: Callable[[], int],
    ) -> None:
        self._storage = storage
        self._data_dir = data_dir
        self._groups = groups
        self._catalog = catalog
        self._watch = watch
        self._clock = clock
        self._min_lock_ns = min_lock_ns
        self._bytes: dict[str, int | None] = {}
        self._measuring: asyncio.Task[None] | None = None
        self._measured_at = float("-inf")
        self._one = asyncio.Lock()

    # Looking.

    def listed(self) -> list[Leftover]:
        """Names as they are now; sizes as they were measured last, and soon if never."""
        names = self._names()
        if any(name not in self._bytes for name in names):
            self._measured_at = float("-inf")
            self.measure()
        return [
            Leftover(name=name, bytes=self._bytes.get(name), places=[str(self._folder(name))])
            for name in names
        ]

    def measure(self) -> None:
        """Now and then, in a thread of its own."""
        now = asyncio.get_running_loop().time()
        is_busy = self._measuring is not None and not self._measuring.done()
        if not is_busy and now - self._measured_at >= MEASURE_SECONDS:
            self._measured_at = now
            self._measuring = asyncio.create_task(self._measure())

    async def close(self) -> None:
        if self._measuring is not None:
            self._measuring.cancel()
            await asyncio.gather(self._measuring, return_exceptions=True)

    async def _measure(self) -> None:
        """A supervision: a leftover whose disk fails is nobody's trouble."""
        async with self._one:
            await asyncio.to_thread(self._clear)
        for name in self._names():
            try:
                self._bytes[name] = await asyncio.to_thread(tree_bytes, self._folder(name))
            except Exception as error:  # noqa: BLE001
                self._bytes[name] = None
                _log.warning("leftover.not_measured", group=name, reason=words_of(error).message)

    def _names(self) -> list[str]:
        """Nothing in a folder is looked at: its disk may not answer."""
        try:
            with os.scandir(groups_dir(self._data_dir)) as entries:
                return sorted(
                    each.name
                    for each in entries
                    if is_name(each.name)
                    and each.name not in self._groups
                    and (each.is_symlink() or each.is_dir())
                )
        except FileNotFoundError:
            return []

    def _folder(self, name: str) -> Path:
        return groups_dir(self._data_dir) / name

    # Forgetting.

    async def forget(self, group: str, request: ForgetRequest) -> ForgetResult:
        """Raises UsageError, NotFoundError, OwnedError for a lock, OSError."""
        async with self._one:
            self._check(group)
            past = await asyncio.to_thread(self._past, group)
            size = await asyncio.to_thread(tree_bytes, self._folder(group))
            result = ForgetResult(
                group=group,
                bytes=size,
                points=past.points,
                locked_points=past.locked,
                places=[str(self._folder(group))],
                dry_run=request.dry_run,
            )
            if request.dry_run:
                return result
            self._check_confirmed(group, request)
            self._check_lock(group, past, request)
            self._check(group)  # a reload may have taken it back: from here on there is no wait
            moved_to = self._set_aside(group)
            self._watch.forget(group)
            self._bytes.pop(group, None)
            try:
                self._catalog.forget(group)
            except sqlite3.Error as error:  # it is made anew from the histories
                _log.warning("catalog.failed", group=group, error=str(error))
            await asyncio.to_thread(_delete, moved_to)
            _log.warning("group.forgotten", group=group, bytes=size, points=past.points)
            return result

    def _clear(self) -> None:
        """What an order that was interrupted has left."""
        folder = forgotten_dir(self._data_dir)
        for name in self._storage.names(folder):
            try:
                _delete(folder / name)
            except OSError as error:
                _log.warning("forgotten.not_deleted", name=name, reason=words_of(error).message)

    def _check(self, group: str) -> None:
        if group in self._groups:
            raise UsageError(
                f"group {group!r} is in the configuration: it is replicated, and not forgotten",
                hint="take it out of receiver.toml, then: replicator reload",
            )
        if group not in self._names():
            raise NotFoundError(
                f"nothing is left over of a group {group!r}",
                hint="`replicator status` lists what is",
            )

    def _check_confirmed(self, group: str, request: ForgetRequest) -> None:
        if request.confirm != group:
            raise UsageError("to forget a group for good its name has to be given twice")

    def _check_lock(self, group: str, past: _Past, request: ForgetRequest) -> None:
        if request.break_lock:
            return
        hint = "wait until then; or break the lock: --break-lock --reason TEXT"
        if past.locked:
            noun = "point is" if past.locked == 1 else "points are"
            raise OwnedError(f"{past.locked} {noun} locked in group {group!r}", hint=hint)
        if past.trouble:
            raise OwnedError(
                f"the history of group {group!r} cannot be read, so nobody knows what of it is"
                f" locked: {past.trouble}",
                hint="if it is to go all the same: --break-lock --reason TEXT",
            )

    def _past(self, group: str) -> _Past:
        """Any thread."""
        points, locked = 0, 0
        try:
            for place in find_histories(self._storage, self._folder(group)):
                index = read_index(self._storage, place)
                if index.damage is not None:
                    return _Past(points, locked, index.damage.message)
                points += len(index.kept_points())
                locked += self._locked(index)
        except NotFoundError:
            return _Past()  # it never had a history
        except (DamageError, VersionError, OSError) as error:
            return _Past(points, locked, words_of(error).message)
        return _Past(points, locked)

    def _locked(self, index: BareIndex) -> int:
        """How many points are, by the clock that locks go by."""
        recorded_ns = 0 if index.group is None else index.group.lock_ns
        mends = () if index.group is None else index.group.mends
        ages = self._clock.ages()
        after_ns = ages.locked_after_ns(max(recorded_ns, self._min_lock_ns()))
        aged = moved(mended(index.kept_points(), mends), ages.lags)
        return sum(end_ns(point) > after_ns for point in aged)

    def _set_aside(self, group: str) -> Path:
        """Where it is then. Durable when this returns."""
        folder = forgotten_dir(self._data_dir)
        self._storage.make_directory(folder)
        number = 0
        while (target := folder / f"{group}.{number}").exists():
            number += 1
        self._storage.replace(self._folder(group), target)
        self._storage.sync_directory(groups_dir(self._data_dir))
        self._storage.sync_directory(folder)
        return target


def _delete(path: Path) -> None:
    """With everything in it; of a link, with everything that it leads to."""
    if path.is_symlink():
        real = Path(os.path.realpath(path))
        for inside in real.iterdir() if real.is_dir() else ():
            _delete(inside)
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
