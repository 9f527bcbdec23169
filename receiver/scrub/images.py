# SPDX-License-Identifier: Apache-2.0
"""Checking images against the sums of their time, and making segments anew with the right ones.

An image that was rotten when it was taken has a good checksum: it is of the rot. What it must hold
is what the batch before it in that block wrote (receiver.history.sums.past). The images of a
segment are hashed block by block when the segment is read (`hashes`, any thread for a sealed one),
and compared in the apply thread (`take`), segment after segment, the oldest first.

A block that differs costs exactly the points between the batch that wrote it and the one whose
image it is; that is on record, durable, before anything is healed. The right content would make
another record, whose sums everything behind it is chained to; so where there is a copy of it, the
segment is written anew, as a compaction writes one (Reclaim.rewrite), and only then is the damage
taken off the record. A segment that an open view reads, or that is being written, is left for
another scrub.

Concurrency: `take` in the apply thread, with no batch half done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64_intdigest

from receiver.blocks.zeroes import with_zeroes
from receiver.damage import damage as rules
from receiver.damage.healing import Healer
from receiver.history.batches import Batch, Segment
from receiver.history.bodies import UNKNOWN_SUM, DamagedBlocks
from receiver.history.images import BLOCK_BYTES, SLOT_SHIFT, U64, Bools, Image, block_key, key_parts
from receiver.history.log import HistoryLog
from receiver.history.state import Disk
from receiver.history.sums.past import PastSums
from receiver.history.sums.sums import LatestSums
from receiver.retention.reclaim import Pins, Reclaim
from receiver.scrub.findings import Findings
from receiver.scrub.state import Bad
from replicator.base.errors import DamageError
from replicator.base.storage import READ_ERRORS

READ_TOGETHER = 16
Hashes = Mapping[int, U64]
"""By the number of a batch: the sum of each block of its images, UNKNOWN_SUM where it cannot be
read (which is found by whoever checks the records)."""


@dataclass(frozen=True, slots=True)
class _Wrong:
    """A block of an image that is not what the batch found."""

    batch: Batch
    image: Image
    key: int
    wanted: int


class ImageCheck:
    """See the head of this file. `start` with each scrub, `get_ready` before each segment."""

    def __init__(
        self,
        history: HistoryLog,
        sums: LatestSums,
        past: PastSums,
        healer: Healer,
        findings: Findings,
        reclaim: Reclaim,
        disks: Callable[[], Iterable[Disk]],
        pins: Callable[[], Pins],
    ) -> None:
        self._history = history
        self._sums = sums
        self._past = past
        self._healer = healer
        self._findings = findings
        self._reclaim = reclaim
        self._disks = disks
        self._pins = pins

    def start(self) -> None:
        """With the oldest segment. Raises OSError."""
        self._past.reset()

    def end(self) -> None:
        """Raises OSError."""
        self._past.reset()

    def get_ready(self, segment: Segment) -> bool:
        """False: this was a step of its own, and there may be more. Raises OSError."""
        first = next((batch for batch in self._batches(segment)), None)
        return first is None or not self._past.gather(first.number)

    # -- reading

    def hashes(self, segment: Segment) -> Hashes:
        """Of all images in the segment, as it was when this began. Raises OSError."""
        sizes = {disk.slot: disk.size_bytes for disk in self._disks()}
        found: dict[int, U64] = {}
        for batch in self._batches(segment):
            try:
                found[batch.number] = np.array(list(self._hashed(batch, sizes)), dtype=np.uint64)
            except DamageError:
                continue
        return found

    def _hashed(self, batch: Batch, sizes: Mapping[int, int]) -> Iterator[int]:
        table = self._history.reader.table(batch)
        for low in range(0, len(table), READ_TOGETHER):
            images = [table.image(row) for row in range(low, min(low + READ_TOGETHER, len(table)))]
            for image, content in zip(images, self._read(images), strict=True):
                for block in range(image.block, image.block + image.blocks):
                    length = min(BLOCK_BYTES, sizes.get(image.slot, 0) - block * BLOCK_BYTES)
                    if content is None or length <= 0:
                        yield UNKNOWN_SUM
                    elif not image.stored:
                        yield xxh3_64_intdigest(bytes(length))
                    else:
                        at = (block - image.block) * BLOCK_BYTES
                        yield xxh3_64_intdigest(content[at : at + length])

    def _read(self, images: list[Image]) -> list[bytes | None]:
        try:
            return list(self._history.reader.read_images(images))
        except (OSError, DamageError):
            return [self._read_one(image) for image in images]

    def _read_one(self, image: Image) -> bytes | None:
        try:
            return self._history.reader.read_image(image)
        except DamageError:
            return None
        except OSError as error:
            if error.errno not in READ_ERRORS:
                raise
            return None

    # -- in the apply thread

    def take(self, segment: Segment, hashes: Hashes) -> None:
        """What was read of a segment that is still part of the history. Raises OSError."""
        wrong = [
            each
            for batch in self._batches(segment)
            for each in self._wrong(batch, hashes.get(batch.number))
        ]
        if not wrong:
            return
        lost = [self._lost(each) for each in wrong]
        known = self._findings.damage
        fresh = [not _is_known(known, each) for each in lost]
        self._findings.put_on_record(rules.added(known, lost))
        places = [self._history.reader.place_of(each.image) for each in wrong]
        healed = self._heal(segment, wrong)
        for each, entry, is_fresh, place in zip(wrong, lost, fresh, places, strict=True):
            is_healed = (each.batch.number, each.key) in healed
            if is_healed:
                keys = np.array([each.key], dtype=np.uint64)
                damage = rules.healed(self._findings.damage, keys, replaced=entry.replaced)
                self._findings.put_on_record(damage)
            if is_fresh or is_healed:
                self._findings.add(
                    Bad(
                        "image",
                        str(place.path),
                        place.offset,
                        self._name(entry.slot),
                        entry.block * BLOCK_BYTES,
                        BLOCK_BYTES,
                        self._findings.points_of([entry]),
                        is_healed,
                        "content is not what was there: it had rotted when the image was taken",
                    )
                )

    def _wrong(self, batch: Batch, hashes: U64 | None) -> Iterator[_Wrong]:
        table = self._history.reader.table(batch)
        keys, rows = table.keys()
        known = self._past.found(batch, keys)
        if known is None or hashes is None or len(hashes) != len(keys):
            return
        wanted = self._with_zeroes(keys, known.sums, known.is_changed)
        is_known = (wanted != np.uint64(UNKNOWN_SUM)) & (hashes != np.uint64(UNKNOWN_SUM))
        for at in np.flatnonzero(is_known & (wanted != hashes)).tolist():
            yield _Wrong(batch, table.image(int(rows[at])), int(keys[at]), int(wanted[at]))

    def _with_zeroes(self, keys: U64, sums: U64, is_changed: Bools) -> U64:
        """What nothing was ever written to, on an image that was made here, is zero."""
        wanted, slots = sums.copy(), keys >> np.uint64(SLOT_SHIFT)
        for disk in self._disks():
            of_disk = slots == np.uint64(disk.slot)
            wanted[of_disk] = with_zeroes(
                disk,
                keys[of_disk],
                sums[of_disk],
                is_changed[of_disk],
                is_whole=self._sums.is_whole,
            )
        return wanted

    def _lost(self, each: _Wrong) -> DamagedBlocks:
        slot, block = key_parts(each.key)
        writer = self._sums.written_before(each.key, each.batch.number)
        return DamagedBlocks(slot, block, 1, writer, each.batch.number)

    def _heal(self, segment: Segment, wrong: list[_Wrong]) -> set[tuple[int, int]]:
        """(batch, key) of what is right again."""
        if not segment.sealed:
            return set()
        contents: dict[int, bytearray] = {}
        healed: set[tuple[int, int]] = set()
        for each in wrong:
            right = self._healer.copy_of(each.key, each.wanted)
            if right is not None:
                content = contents.get(each.image.position)
                if content is None:
                    content = contents[each.image.position] = self._content(each.image)
                at = (each.key - block_key(each.image.slot, each.image.block)) * BLOCK_BYTES
                content[at : at + len(right)] = right
                healed.add((each.batch.number, each.key))
        images = {position: bytes(content) for position, content in contents.items()}
        try:
            if images and self._reclaim.rewrite(segment, images, self._pins()):
                return healed
        except (OSError, DamageError):  # it stays as it was, and on record
            return set()
        return set()

    def _content(self, image: Image) -> bytearray:
        size = image.blocks * BLOCK_BYTES
        disk = next(disk for disk in self._disks() if disk.slot == image.slot)
        size = min(size, disk.size_bytes - image.block * BLOCK_BYTES)
        return bytearray((self._history.reader.read_image(image) or bytes(size))[:size])

    def _batches(self, segment: Segment) -> list[Batch]:
        return [
            each
            for each in self._history.batch_list.all
            if segment.first <= each.begin < segment.end
        ]

    def _name(self, slot: int) -> str:
        names = {disk.slot: disk.name for disk in self._disks()}
        return names.get(slot, str(slot))


def _is_known(damage: rules.Damage, lost: DamagedBlocks) -> bool:
    return any(
        each.slot == lost.slot
        and each.block <= lost.block < each.block + each.blocks
        and each.written <= lost.written
        and lost.replaced <= each.replaced
        for each in damage
    )
