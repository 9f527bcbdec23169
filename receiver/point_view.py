# SPDX-License-Identifier: Apache-2.0
"""The group's disks as of one point, read while replication goes on.

For block b at point P: the earliest before-image after P, else the replica. A read takes the
*replica first, then the index*: a batch is published in the index before it overwrites the
replica, so whatever of the replica was overwritten when we read it is in the index when we
look. The other way round a batch could slip in between and show its new content.

The images of the batches up to the opening of the view are put in one sorted index; later
batches are looked at one after the other, oldest first, and folded in from time to time.

Concurrency: `read` from any thread, several at a time. The view pins its point: retention removes
nothing that it needs, which is every batch behind the point.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from receiver.damage import Damage, refuse_range
from receiver.history.batches import Batch
from receiver.history.images import BLOCK_BYTES, EarliestImages, Image, block_key
from receiver.history.log import HistoryLog
from receiver.replica import Replica
from receiver.values import Point, PointDisk
from replicator.base.errors import NotFoundError, UsageError

FOLD_BATCHES = 64


@dataclass(frozen=True, slots=True)
class _Index:
    """What has been put together: the images of all batches up to number `upto`."""

    upto: int
    earliest: EarliestImages
    tables: Sequence[Batch]


class PointView:
    """See the head of this file. `release` is called once, when the view is closed."""

    def __init__(
        self,
        history: HistoryLog,
        replica: Replica,
        point: Point,
        batch_number: int,
        domains: dict[str, str],
        release: Callable[[], None],
        damage: Callable[[], Damage] = tuple,
    ) -> None:
        """`damage` is what is known to be damaged by now."""
        self._damage = damage
        self._number = batch_number
        self.point = point
        self.domains = domains
        self._history = history
        self._replica = replica
        self._disks = {disk.name: disk for disk in point.members}
        self._release: Callable[[], None] | None = release
        self._close_lock = threading.Lock()
        self._fold_lock = threading.Lock()
        batches = history.after(batch_number)
        upto = batches[-1].number if batches else batch_number
        self._index = _Index(upto, EarliestImages([each.images for each in batches]), batches)
        self._last_image: tuple[int, bytes] = (-1, b"")

    @property
    def disks(self) -> list[tuple[str, int]]:
        return [(disk.name, disk.size_bytes) for disk in self.point.members]

    @property
    def index(self) -> EarliestImages:
        """Of the batches up to the opening of the view, or the last fold."""
        return self._index.earliest

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises NotFoundError, UsageError for a range beyond the disk,
        DamageError where an image or the replica cannot be trusted."""
        disk = self._disks.get(name)
        if disk is None:
            raise NotFoundError(f"point {self.point} has no disk {name!r}")
        if offset < 0 or length < 0 or offset + length > disk.size_bytes:
            raise UsageError(f"[{offset}, +{length}) is beyond the end of disk {name!r}")
        if not length:
            return b""
        first = offset // BLOCK_BYTES
        end = -(-(offset + length) // BLOCK_BYTES)
        low, high = block_key(disk.slot, first), block_key(disk.slot, end)
        refuse_range(self._damage(), self.point, self._number, low, high)
        start_byte = first * BLOCK_BYTES
        size = min(end * BLOCK_BYTES, disk.size_bytes) - start_byte
        content = bytearray(self._replica.read(name, start_byte, size))
        self._overlay(disk, first, end, content)
        return bytes(memoryview(content)[offset - start_byte : offset - start_byte + length])

    def _overlay(self, disk: PointDisk, first: int, end: int, content: bytearray) -> None:
        """Puts what was there at the point over what is there now."""
        start, stop = block_key(disk.slot, first), block_key(disk.slot, end)
        index = self._index
        done: list[tuple[int, int]] = []
        for low, high, image in index.earliest.within(start, stop):
            self._put(image, low, high, start, content)
            done.append((low, high))
        later = self._history.after(index.upto)
        if later:
            self._overlay_later(later, start, stop, done, content)
            if len(later) >= FOLD_BATCHES:
                self._fold(index, later)

    def _overlay_later(
        self,
        later: Sequence[Batch],
        start: int,
        stop: int,
        done: list[tuple[int, int]],
        content: bytearray,
    ) -> None:
        taken: set[int] | None = None
        for batch in later:
            low_row, high_row = batch.images.rows_within(start, stop)
            if low_row == high_row:
                continue
            if taken is None:
                taken = {key for low, high in done for key in range(low, high)}
            for row in range(low_row, high_row):
                image = batch.images.image(row)
                key = block_key(image.slot, image.block)
                for block in range(max(key, start), min(key + image.blocks, stop)):
                    if block not in taken:
                        taken.add(block)
                        self._put(image, block, block + 1, start, content)

    def _put(self, image: Image, low: int, high: int, start: int, content: bytearray) -> None:
        place = (low - start) * BLOCK_BYTES
        size = min((high - low) * BLOCK_BYTES, len(content) - place)
        if not image.stored:
            content[place : place + size] = bytes(size)
            return
        data = self._image(image)
        at = (low - block_key(image.slot, image.block)) * BLOCK_BYTES
        content[place : place + size] = data[at : at + size]

    def _image(self, image: Image) -> bytes:
        """Small reads often ask for the same image again."""
        position, data = self._last_image
        if position != image.position:
            data = self._history.read_image(image)
            self._last_image = (image.position, data)
        return data

    def _fold(self, index: _Index, later: Sequence[Batch]) -> None:
        """Puts the batches seen meanwhile into the index; one thread does it, others go on."""
        if not self._fold_lock.acquire(blocking=False):
            return
        try:
            if self._index is index:
                batches = [*index.tables, *later]
                earliest = EarliestImages([each.images for each in batches])
                self._index = _Index(later[-1].number, earliest, batches)
        finally:
            self._fold_lock.release()

    def close(self) -> None:
        """Idempotent. No read may be under way or follow."""
        with self._close_lock:
            release, self._release = self._release, None
        if release is not None:
            release()
