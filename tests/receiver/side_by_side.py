# SPDX-License-Identifier: Apache-2.0
"""A group whose folders come from different moments; and what must be true of whatever opens.

`Group` lives through some points and remembers its folders as they were at some of them. A test
puts a folder back from there, or takes it away, and opens the group. `check` compares every point
that is served with the source, byte for byte: refused is fine, false is not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from receiver.points.policy import HistoryPolicy
from receiver.points.values import Point
from replicator.base.errors import DamageError, UnreachableError
from replicator.base.storage import write_all
from tests.receiver.plain import Contents
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World

FINE_NS = 3600 * 1_000_000_000
FOLDERS = ("disks", "history", "inbox", "sums", "index", "fine", "summaries")
Files = dict[Path, bytes]


class Group:
    """See the head of this file. `points` points, the folders kept as they were behind `old` and at
    the end; `left` batches are in the inbox and not applied."""

    def __init__(
        self,
        *,
        points: int = 12,
        old: int = 6,
        left: int = 0,
        flavour: int = 0,
        inbox_segment_bytes: int = 9_000,
        history_segment_bytes: int = 6_000,
    ) -> None:
        limits = replace(
            SMALL,
            history_segment_bytes=history_segment_bytes,
            inbox_segment_bytes=inbox_segment_bytes,
        )
        self.flavour = flavour
        self.gone: dict[int, tuple[Point, Contents]] = {}
        self.done: list[str] = []
        self.world = World(limits=limits, fine_ns=FINE_NS)
        self.world.begin_stream(from_zero=True)
        for number in range(1, points + 1):
            self.write(number)
            self.world.ship_all()
            if number <= points - left:
                self.world.apply_all()
            if number == old:
                self.then = self.folders()
                self.then_catalog = self.world.catalog
        self.now = self.folders()
        self.highest = max(self.world.announced)

    def write(self, number: int) -> None:
        """Whole blocks, and less than a block."""
        world, flavour = self.world, 1000 * self.flavour
        blocks = {name: len(content) // 4096 for name, content in world.guest.items()}
        a, b = min(blocks["a"], 9), min(blocks["b"], 5)
        world.write("a", number % a * 4096, noise(flavour + number, 4096))
        world.write("a", (number * 5) % a * 4096 + 512, noise(flavour + 100 + number, 1024))
        world.write("b", number % b * 4096, noise(flavour + 200 + number, 4096))
        world.cut()

    # -- moving folders

    def folders(self) -> dict[str, Files]:
        return {each: self._files(GROUP_DIRECTORY / each) for each in FOLDERS}

    def _files(self, folder: Path) -> Files:
        found: Files = {}
        storage = self.world.storage
        for name in storage.names(folder):
            path = folder / name
            try:
                file = storage.open(path)
            except IsADirectoryError:
                found |= self._files(path)
                continue
            found[path] = file.pread(file.size(), 0)
            file.close()
        return found

    def stop(self) -> None:
        self.world.storage.kill()

    def remove(self, folder: str) -> None:
        for path in self._files(GROUP_DIRECTORY / folder):
            self.world.storage.unlink(path)

    def put_back(self, folder: str, files: Files, *, in_place: bool = False) -> None:
        """As a copy; `in_place`: as a snapshot of the filesystem does it, with the same inodes."""
        storage = self.world.storage
        for path in self._files(GROUP_DIRECTORY / folder):
            if not in_place or path not in files:
                storage.unlink(path)
        for path, content in files.items():
            storage.make_directory(path.parent)
            is_there = storage.exists(path)
            file = storage.open(path, writable=True) if is_there else storage.create(path)
            file.truncate(len(content))
            write_all(file, [content], 0)
            file.datasync()
            file.close()
            storage.sync_directory(path.parent)

    # -- opening

    def open(self) -> None:
        """A new process."""
        self.stop()
        world = self.world
        world.events.clear()
        world.group = world._new_group()
        world.group.recover()

    def refused(self) -> DamageError:
        """The opening stops."""
        try:
            self.open()
        except DamageError as error:
            return error
        raise AssertionError("it opened")

    def told(self) -> set[str]:
        return {event.name for event in self.world.events}

    def scrub(self) -> None:
        scrub = self.world.group.scrub
        scrub.begin()
        while scrub.state.is_running:
            segment = scrub.step()
            if segment is not None:
                scrub.take_segment(segment, scrub.read_segment(segment))
        self.world.apply_all()

    # -- what must be true

    def _comes_back(self, point: Point) -> None:
        """One that retention had given up, in an older history; or one from before a crash."""
        world = self.world
        if point.sequence in self.gone:
            world.announced[point.sequence], world.expected[point.sequence] = self.gone[
                point.sequence
            ]
        else:
            world._found(point)

    def _remember_gone(self) -> None:
        """What is given up from here on."""
        world, forget = self.world, self.world.forget

        def remembered(sequence: int) -> None:
            if sequence in world.announced:
                self.gone[sequence] = world.announced[sequence], world.expected[sequence]
            forget(sequence)

        world.forget = remembered  # type: ignore[method-assign]

    def served(self) -> list[int]:
        """The points that can be had, each compared. Those of images in doubt cannot."""
        world, good = self.world, []
        for point in world.group.points.all:
            if not world.group.applier.is_point_applied(point.sequence):
                continue
            if point.sequence not in world.announced:
                self._comes_back(point)
            try:
                world.check_point(point)
            except (DamageError, UnreachableError):
                continue
            good.append(point.sequence)
        return good

    def check(self) -> list[int]:
        """Now, behind a scrub, and behind a sync; no number is given twice. Those served then."""
        self.world.apply_all()
        self.served()
        self.scrub()
        self.served()
        self.go_on()
        return self.served()

    def go_on(self) -> None:
        """The source comes back, resumes or syncs, and writes."""
        world = self.world
        stream = world.group.known.welcome().stream
        if stream != world.source.stream:
            world.dead_ordinal = world.source.ordinal
            world.begin_stream(from_zero=False)
            self._is_in_replica()
            for name, _ in world.disks:
                world.sync_all(name)
            world.cut()
        elif world.is_syncing:
            world.settle()
            self._is_in_replica()
            for name, disk in world.plain.disks.items():
                if disk.syncing:
                    world.sync_all(name)
        self.write(77)
        world.settle()
        newest = world.group.points.newest
        assert newest is not None
        assert newest.sequence > self.highest, "a number was given twice"
        world.check_point(newest)

    def _is_in_replica(self) -> None:
        """What a sync finds there decides what it ships."""
        world = self.world
        for name, size in world.disks:
            disk, content = world.group.applier.applied.disk_called(name), b""
            if disk is None and world.group._parts.replica.size_of(name) == size:
                content = world.group._parts.replica.file(name).pread(size, 0)
            elif disk is not None and disk.size_bytes == size:
                content = world.group._parts.replica.file(disk.name).pread(size, 0)
            world.plain.disks[name].content[:] = content.ljust(size, b"\0")

    def retain(self, max_bytes: int) -> None:
        self.world.may_be_gone |= set(self.world.announced)
        self.world.group.retain(HistoryPolicy(max_bytes))
        while self.world.group.tidy():
            pass

    def applied_sequences(self) -> Iterable[int]:
        return [each.sequence for each in self.world.group.points.all]
