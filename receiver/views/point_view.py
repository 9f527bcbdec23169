# SPDX-License-Identifier: Apache-2.0
"""The group's disks as of one point, read while replication goes on.

For block b at point P: the earliest before-image after P, else the replica. A read takes the
*replica first, then the index*: a batch is published in the index before it overwrites the
replica, so whatever of the replica was overwritten when we read it is in the index when we
look. The other way round a batch could slip in between and show its new content.

What is behind the point is an ImageStack, mostly files. A read looks at windows of WINDOW_BLOCKS
blocks, and what was found for a window is kept (the last ones, up to WINDOWS_RUNS_MAX runs): most
reads have neighbours. What is known of a window is brought up to the newest batch before each use,
by the tables of the batches that came since; nothing that was found ever becomes wrong, for the
earliest image of a block stays the earliest. When many batches came, or files were merged, the
stack is renewed, which reads next to nothing.

Concurrency: `read` from any thread, several at a time; made by the group's apply thread. The view
pins its point: retention removes nothing that it needs, which is every batch behind the point.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from receiver.blocks.holes import Extents, of_blocks, span_of
from receiver.blocks.replica import Replica
from receiver.damage.damage import Damage, damaged_ranges, refuse_range
from receiver.damage.doubt import Unverified, nothing, refuse_read
from receiver.history.batches import Batch
from receiver.history.images import BLOCK_BYTES, Image, block_key
from receiver.history.index.runs import Runs, earliest, runs_of
from receiver.history.log import HistoryLog
from receiver.points.values import Point, PointDisk
from replicator.base.errors import NotFoundError, UsageError

WINDOW_BLOCKS = 1024
WINDOWS_RUNS_MAX = 1 << 17
RENEW_BATCHES = 64
_WINDOW_RUNS = 32
"""What a window without images counts as."""


@dataclass(frozen=True, slots=True)
class _Window:
    """What is behind the point up to batch `upto`, of the keys of one window."""

    upto: int
    runs: Runs


class PointView:
    """See the head of this file. `batch` is the one that ends at the point; `release` is called
    once, when the view is closed."""

    def __init__(
        self,
        history: HistoryLog,
        replica: Replica,
        point: Point,
        batch: Batch,
        domains: dict[str, str],
        release: Callable[[], None],
        damage: Callable[[], Damage] = tuple,
        doubt: Callable[[], Unverified] = nothing,
    ) -> None:
        """`damage` is what is known to be damaged by now, `doubt` which images are not believed by
        now. Raises DamageError, OSError."""
        self._damage = damage
        self._doubt = doubt
        self._number = batch.number
        self.point = point
        self.domains = domains
        self._history = history
        self._replica = replica
        self._disks = {disk.name: disk for disk in point.members}
        self._release: Callable[[], None] | None = release
        self._close_lock = threading.Lock()
        self._renew_lock = threading.Lock()
        self._stack = history.segment_set.stack_behind(batch)
        self._windows: OrderedDict[int, _Window] = OrderedDict()
        self._windows_lock = threading.Lock()
        self._windows_runs = 0
        self._last_image: tuple[int, bytes] = (-1, b"")

    @property
    def disks(self) -> list[tuple[str, int]]:
        return [(disk.name, disk.size_bytes) for disk in self.point.members]

    @property
    def memory_bytes(self) -> int:
        """What it holds beside the group's own index."""
        return self._stack.memory_bytes + self._windows_runs * 32

    @property
    def allocated_bytes(self) -> int:
        """What the replica takes of these disks now: about what the point takes."""
        return sum(
            min(self._replica.allocated_bytes(disk.image), disk.size_bytes)
            for disk in self.point.members
        )

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises NotFoundError, UsageError for a range beyond the disk,
        DamageError where an image or the replica cannot be trusted, UnreachableError while the
        replica's image is not believed."""
        disk = self._member(name, offset, length)
        if not length:
            return b""
        refuse_read(self._doubt, self.point, disk)
        first = offset // BLOCK_BYTES
        end = -(-(offset + length) // BLOCK_BYTES)
        low, high = block_key(disk.slot, first), block_key(disk.slot, end)
        refuse_range(self._damage(), self.point, self._number, low, high)
        start_byte = first * BLOCK_BYTES
        size = min(end * BLOCK_BYTES, disk.size_bytes) - start_byte
        content = self._overlay(disk, first, end, self._replica.read(disk.image, start_byte, size))
        if len(content) == length:
            return content
        return content[offset - start_byte : offset - start_byte + length]

    def extents(self, name: str, offset: int, length: int) -> Extents:
        """Which of the range were holes at the point. What is damaged is none, nor what lies behind
        the end of a replica's file: a read of it fails. Raises as `read` does."""
        disk = self._member(name, offset, length)
        refuse_read(self._doubt, self.point, disk)
        first, end = span_of(offset, length)
        end = min(end, -(-disk.size_bytes // BLOCK_BYTES))
        low, high = block_key(disk.slot, first), block_key(disk.slot, end)
        file = self._replica.file(disk.image)
        size = file.size()  # the replica first, as in `read`
        data = file.data_ranges(first * BLOCK_BYTES, min(end * BLOCK_BYTES, disk.size_bytes))
        runs = self._runs_within(low, high)
        damaged = list(damaged_ranges(self._damage(), self._number, low, high))
        if not (data or damaged or len(runs)) and size >= disk.size_bytes:
            return [(min(offset + length, end * BLOCK_BYTES) - offset, True)]
        is_data = np.zeros(end - first, dtype=np.bool_)
        is_data[max(size // BLOCK_BYTES - first, 0) :] = size < disk.size_bytes
        for start, stop in data:
            is_data[start // BLOCK_BYTES - first : -(-stop // BLOCK_BYTES) - first] = True
        keys, rows = runs.keys()
        is_data[(keys - np.uint64(low)).astype(np.int64)] = runs.rows["stored"][rows] > 0
        for start, stop in damaged:
            is_data[start - low : stop - low] = True
        return of_blocks(is_data, offset, length)

    def _runs_within(self, low: int, high: int) -> Runs:
        """The earliest images behind the point of many blocks, past the windows."""
        self._renew_stack()
        stack = self._stack
        runs, later = stack.runs_within(low, high), self._history.batch_list.after(stack.upto)
        return self._with(runs, later, low, high) if later else runs

    def _member(self, name: str, offset: int, length: int) -> PointDisk:
        disk = self._disks.get(name)
        if disk is None:
            raise NotFoundError(f"point {self.point} has no disk {name!r}")
        if offset < 0 or length < 0 or offset + length > disk.size_bytes:
            raise UsageError(f"[{offset}, +{length}) is beyond the end of disk {name!r}")
        return disk

    # -- what was there instead

    def _overlay(self, disk: PointDisk, first: int, end: int, now: bytes) -> bytes:
        """What was there at the point, `now` being what is there now."""
        start, stop = block_key(disk.slot, first), block_key(disk.slot, end)
        found = self._images_within(start, stop)
        if not found:
            return now
        content = bytearray(now)
        images = {image.position: image for _, _, image in found if image.stored}
        contents = self._contents(images)
        for low, high, image in found:
            place = (low - start) * BLOCK_BYTES
            size = min((high - low) * BLOCK_BYTES, len(content) - place)
            if image.stored:
                at = (low - block_key(image.slot, image.block)) * BLOCK_BYTES
                content[place : place + size] = contents[image.position][at : at + size]
            else:
                content[place : place + size] = bytes(size)
        return bytes(content)

    def _contents(self, images: dict[int, Image]) -> dict[int, bytes]:
        """By position. Small reads often ask for the same image again."""
        last, data = self._last_image
        wanted = [image for position, image in images.items() if position != last]
        read = self._history.reader.read_images(wanted)
        contents = {image.position: each for image, each in zip(wanted, read, strict=True)}
        if last in images:
            contents[last] = data
        elif wanted:
            self._last_image = (wanted[-1].position, read[-1])
        return contents

    # -- which images

    def _images_within(self, start: int, stop: int) -> list[tuple[int, int, Image]]:
        """The earliest behind the point, of all batches that are published by now."""
        self._renew_stack()
        found: list[tuple[int, int, Image]] = []
        for number in range(start // WINDOW_BLOCKS, -(-stop // WINDOW_BLOCKS)):
            runs = self._window(number).runs
            if len(runs):
                found += runs.cut(start, stop).images()
        return found

    def _window(self, number: int) -> _Window:
        low, high = number * WINDOW_BLOCKS, (number + 1) * WINDOW_BLOCKS
        known = self._windows.get(number)
        window, stack = known, self._stack
        if window is None or window.upto + RENEW_BATCHES < stack.upto:
            window = _Window(stack.upto, stack.runs_within(low, high))
        later = self._history.batch_list.after(window.upto)
        if later:
            window = _Window(later[-1].number, self._with(window.runs, later, low, high))
        if window is not known:
            self._keep(number, window)
        return window

    def _with(self, runs: Runs, later: list[Batch], low: int, high: int) -> Runs:
        parts = [runs]
        for batch in later:
            if batch.images.block_count:
                table = self._history.reader.table(batch)
                first, last = table.rows_within(low, high)
                if first < last:
                    parts.append(runs_of(table.slice(first, last)).cut(low, high))
        return earliest(parts)

    def _keep(self, number: int, window: _Window) -> None:
        with self._windows_lock:
            gone = self._windows.pop(number, None)
            if gone is not None:
                self._windows_runs -= len(gone.runs) + _WINDOW_RUNS
            self._windows[number] = window
            self._windows_runs += len(window.runs) + _WINDOW_RUNS
            while self._windows_runs > WINDOWS_RUNS_MAX:
                _, oldest = self._windows.popitem(last=False)
                self._windows_runs -= len(oldest.runs) + _WINDOW_RUNS

    def _renew_stack(self) -> None:
        """When it is worth while; one thread does it, others go on."""
        stack, history = self._stack, self._history
        newest = history.batch_list.newest_number
        if newest - stack.upto < RENEW_BATCHES and stack.known is history.segment_set.index.files:
            return
        if not self._renew_lock.acquire(blocking=False):
            return
        try:
            if self._stack is stack:
                self._stack = stack.renewed(history.segment_set.snapshot(stack.upto))
        finally:
            self._renew_lock.release()

    def close(self) -> None:
        """Idempotent. No read may be under way or follow."""
        with self._close_lock:
            release, self._release = self._release, None
        if release is not None:
            release()
