# SPDX-License-Identifier: Apache-2.0
"""Healing: the content that a block must hold, from wherever a copy of it is whose sum fits.

The sum says what is right, so any content that has it will do: zeroes, an image of the same block
that is in the history for another time, a write in the inbox or among those that are kept as single
writes, the replica, there or at another block. And a write from the source: where a sync ships
the block, or a guest writes again what was there, it repairs the block before the batch takes its
before-images.

A block of the replica is written in place, synced and read back. An image is put together anew and
written only if it comes to exactly the bytes that its record was made of (its checksum says so),
so the digests of its segment are right again.

Nothing here decides what is damaged, or takes it off the record; the caller does both, each durable
before and behind. Failure: a crash leaves a block healed, or as bad as it was and on record.

Concurrency: apply thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
from xxhash import xxh3_64_intdigest

from journal.record import HEADER, HEADER_BYTES, RecordType
from receiver.blocks.content import DiskChange
from receiver.blocks.replica import Replica
from receiver.damage import damage as rules
from receiver.history.batches import Batch
from receiver.history.bodies import UNKNOWN_SUM
from receiver.history.images import BLOCK_BYTES, U64, Bools, Image, block_key, key_parts
from receiver.history.log import HistoryLog
from receiver.history.packing import Packer, unpack
from receiver.history.state import Disk
from receiver.history.sums.sums import LatestSums
from receiver.intake.inbox import Inbox
from receiver.writes.log import FineLog
from replicator.base.errors import DamageError
from replicator.base.storage import READ_ERRORS, Storage, write_all
from replicator.base.units import MIB
from replicator.wire.frames import OpenedFrame

_ZEROES = bytes(BLOCK_BYTES)
RECHECKED_BLOCKS_MAX = 4096
"""Of an entry of what is damaged: more of it is only found to be right by being healed."""
WRITES_BYTES_MAX = 512 * MIB
"""Of kept writes, the newest: a batch that finds rot waits for that."""
_LengthOf = Callable[[int], int]
_Found = tuple[int, bytes]


class Healer:
    """See the head of this file."""

    def __init__(
        self,
        storage: Storage,
        history: HistoryLog,
        sums: LatestSums,
        replica: Replica,
        inbox: Inbox,
        disks: Callable[[], Iterable[Disk]],
        *,
        writes: FineLog,
    ) -> None:
        """`disks` are those of the replica as it is applied."""
        self._disks = disks
        self._storage = storage
        self._history = history
        self._sums = sums
        self._replica = replica
        self._inbox = inbox
        self._writes = writes

    # -- the replica

    def heal_replica(self, disk: Disk, keys: U64, sums: U64) -> Bools:
        """Which of the blocks `keys` of the disk hold again what has these sums. What cannot be
        written or read back is not healed."""
        contents = self._find_all(keys, sums, lambda key: _length(disk, key))
        found = [contents.get(key) for key in keys.tolist()]
        return np.array(
            [
                content is not None and self._rewrite(disk, key_parts(key)[1], content)
                for key, content in zip(keys.tolist(), found, strict=True)
            ],
            dtype=np.bool_,
        )

    def read_again(self, disk: Disk, block: int) -> bytes | None:
        """What the medium holds of the block, whatever the page cache says; None if it cannot give
        it."""
        offset = block * BLOCK_BYTES
        self._replica.file(disk.name).drop_cache(offset, BLOCK_BYTES)
        try:
            return self._replica.read(disk.name, offset, _length(disk, block_key(disk.slot, block)))
        except DamageError:
            return None  # the file has become short
        except OSError as error:
            if error.errno not in READ_ERRORS:
                raise
            return None

    def heal_with(self, damage: rules.Damage, changes: Sequence[DiskChange]) -> rules.Damage:
        """What is left of `damage` when the content that a batch is about to write has healed what
        it fits: then the batch changes nothing about that block, and takes no image of it. Durable
        when it returns. Raises OSError."""
        for change in changes:
            places = np.flatnonzero(rules.are_lost(damage, change.keys))
            if not len(places):
                continue
            keys = change.keys[places]
            fits = change.sums[places] == self._sums.find(keys).sums
            fits &= change.sums[places] != np.uint64(UNKNOWN_SUM)
            for place in places[fits].tolist():
                self._put(change, int(change.keys[place]))
            if fits.any():
                self._replica.sync([change.name])
                damage = rules.healed(damage, keys[fits], replaced=0)
        return damage

    def _put(self, change: DiskChange, key: int) -> None:
        offset = key_parts(key)[1] * BLOCK_BYTES
        for extent in change.writes:
            if extent.offset <= offset < extent.offset + extent.length:
                size = min(BLOCK_BYTES, extent.offset + extent.length - offset)
                at = offset - extent.offset
                content = extent.new[at : at + size] if len(extent.new) else _ZEROES[:size]
                write_all(self._replica.file(change.name), [content], offset)
                return

    def _rewrite(self, disk: Disk, block: int, content: bytes) -> bool:
        file, offset = self._replica.file(disk.name), block * BLOCK_BYTES
        try:
            if any(content):
                write_all(file, [content], offset)
            else:
                file.punch(offset, len(content))
            file.datasync()
            return self._replica.read(disk.name, offset, len(content)) == content
        except (OSError, DamageError):
            return False

    # -- an image

    def without_readable(self, damage: rules.Damage) -> rules.Damage:
        """What is left of it when images that hold what they must are taken off: they could not be
        read for a while, or were put back from a copy."""
        by_number = {batch.number: batch for batch in self._history.batch_list.all}
        for each in damage:
            batch = by_number.get(each.replaced)
            if batch is not None and each.blocks <= RECHECKED_BLOCKS_MAX:
                first = block_key(each.slot, each.block)
                keys = [key for key in range(first, first + each.blocks) if self._holds(batch, key)]
                good = np.array(keys, dtype=np.uint64)
                damage = rules.healed(damage, good, replaced=each.replaced)
        return damage

    def _holds(self, batch: Batch, key: int) -> bool:
        """Whether the batch's image of the block is what it must be."""
        wanted = self._sums.before(key, batch.number)
        if wanted == UNKNOWN_SUM:
            return False
        return any(xxh3_64_intdigest(content) == wanted for content in self._image_of(batch, key))

    def _image_of(self, batch: Batch, key: int) -> Iterator[bytes]:
        """The batch's image of the block, if it has one that can be read."""
        table = self._history.reader.table(batch)
        low, high = table.rows_within(key, key + 1)
        disk = next((each for each in self._disks() if each.slot == key_parts(key)[0]), None)
        if low == high or disk is None:
            return
        image = table.image(low)
        at = (key - block_key(image.slot, image.block)) * BLOCK_BYTES
        try:
            content = self._history.reader.read_image(image) or bytes(at + BLOCK_BYTES)
        except (OSError, DamageError):
            return
        yield content[at : at + _length(disk, key)]

    def heal_image(self, batch: Batch, image: Image) -> bool:
        """Whether the image can be read again."""
        place = self._history.reader.place_of(image)
        try:
            with closing(self._storage.open(place.path, writable=True)) as file:
                record = file.pread(HEADER_BYTES + image.stored, place.offset)
                payload = self._payload(batch, image, record)
                if payload is None:
                    return False
                write_all(file, [payload], place.offset + HEADER_BYTES)
                file.datasync()
            self._history.reader.read_image(image)
        except (OSError, DamageError):
            return False
        return True

    def _payload(self, batch: Batch, image: Image, record: bytes) -> bytes | None:
        """What the record was made of, if that can be put together."""
        if len(record) != HEADER_BYTES + image.stored:
            return None
        kind, _, slot, _, offset, _, _, _, total, _, _ = HEADER.unpack_from(record)
        wanted = RecordType.PACKED_WRITE if image.packed else RecordType.WRITE
        if (kind, slot, offset) != (wanted, image.slot, image.block * BLOCK_BYTES):
            return None
        disk = next((each for each in self._disks() if each.slot == image.slot), None)
        if disk is None:
            return None
        size = min(image.blocks * BLOCK_BYTES, disk.size_bytes - offset)
        rotten = self._rotten_content(image, record[HEADER_BYTES:])
        content = self._content(batch, block_key(image.slot, image.block), size, rotten)
        if content is None:
            return None
        payload = content
        if image.packed:
            ((packed,), _) = Packer().pack_all([content])
            payload = bytes(packed)
        return payload if xxh3_64_intdigest(payload) == total else None

    def _rotten_content(self, image: Image, stored: bytes) -> bytes:
        """What of it may be right all the same: of a packed one, as far as it can be unpacked."""
        if not image.packed:
            return stored
        try:
            return unpack(stored, image.blocks, "")
        except DamageError:
            return b""

    def _content(self, batch: Batch, first: int, size: int, rotten: bytes) -> bytes | None:
        """`size` bytes of blocks from key `first` on, as batch `batch` found them. A block whose
        sum is not known is taken as it is: the checksum over all of them tells."""
        keys = np.arange(first, first - (-size // BLOCK_BYTES), dtype=np.uint64)
        sums = np.array(
            [self._sums.before(key, batch.number) for key in keys.tolist()], dtype=np.uint64
        )
        lengths = {
            key: min(BLOCK_BYTES, size - at * BLOCK_BYTES) for at, key in enumerate(keys.tolist())
        }
        parts: dict[int, bytes] = {}
        for at, (key, wanted) in enumerate(zip(keys.tolist(), sums.tolist(), strict=True)):
            part = rotten[at * BLOCK_BYTES : at * BLOCK_BYTES + lengths[key]]
            if len(part) == lengths[key] and wanted in (UNKNOWN_SUM, xxh3_64_intdigest(part)):
                parts[key] = part
        missing = np.array([key not in parts for key in keys.tolist()], dtype=np.bool_)
        parts |= self._find_all(keys[missing], sums[missing], lengths.__getitem__)
        if len(parts) < len(keys):
            return None
        return b"".join(parts[key] for key in keys.tolist())

    # -- where copies are

    def copy_of(self, key: int, total: int) -> bytes | None:
        """Content with that sum for the block `key`, from anywhere. Raises OSError."""
        disk = next((each for each in self._disks() if each.slot == key_parts(key)[0]), None)
        if disk is None:
            return None
        keys, sums = np.array([key], dtype=np.uint64), np.array([total], dtype=np.uint64)
        return self._find_all(keys, sums, lambda key: _length(disk, key)).get(key)

    def _find_all(self, keys: U64, sums: U64, length_of: _LengthOf) -> dict[int, bytes]:
        """Content for each block that has it anywhere."""
        wanted = {
            key: total
            for key, total in zip(keys.tolist(), sums.tolist(), strict=True)
            if total != UNKNOWN_SUM
        }
        found: dict[int, bytes] = {}
        for source in (
            self._zeroes,
            self._from_replica,
            self._from_history,
            self._from_inbox,
            self._from_elsewhere,
            self._from_writes,
        ):
            if len(found) < len(wanted):
                missing = {key: wanted[key] for key in wanted if key not in found}
                for key, content in source(missing, length_of):
                    if len(content) == length_of(key) and (
                        xxh3_64_intdigest(content) == wanted.get(key)
                    ):
                        found[key] = content
        return found

    def _zeroes(self, wanted: dict[int, int], length_of: _LengthOf) -> Iterator[_Found]:
        return ((key, bytes(length_of(key))) for key in wanted)

    def _from_replica(self, wanted: dict[int, int], length_of: _LengthOf) -> Iterator[_Found]:
        names = {disk.slot: disk for disk in self._disks()}
        for key in wanted:
            slot, block = key_parts(key)
            if slot in names:
                try:
                    name = names[slot].name
                    yield key, self._replica.read(name, block * BLOCK_BYTES, length_of(key))
                except (OSError, DamageError):
                    continue

    def _from_history(self, wanted: dict[int, int], length_of: _LengthOf) -> Iterator[_Found]:
        """Images of the same block, of whatever time."""
        for batch in self._history.batch_list.all:
            keys = np.array(sorted(wanted), dtype=np.uint64)
            theirs = self._history.reader.table(batch).keys()[0]
            for key in np.intersect1d(keys, theirs, assume_unique=True).tolist():
                for content in self._image_of(batch, key):
                    yield key, content[: length_of(key)]

    def _from_elsewhere(self, wanted: dict[int, int], length_of: _LengthOf) -> Iterator[_Found]:
        """Other blocks of the replica that were once written with the same content."""
        by_sum: dict[int, list[int]] = {}
        for key, total in wanted.items():
            by_sum.setdefault(total, []).append(key)
        for key, total in self._sums.blocks_with(np.array(sorted(by_sum), dtype=np.uint64)):
            if total in by_sum:
                found = list(self._from_replica({key: total}, lambda _key: BLOCK_BYTES))
                if any(xxh3_64_intdigest(content) == total for _, content in found):
                    yield from ((each, found[0][1]) for each in by_sum.pop(total))

    def _from_inbox(self, wanted: dict[int, int], length_of: _LengthOf) -> Iterator[_Found]:
        for ordinal, frame in self._inbox.every_frame():
            try:
                opened = self._inbox.read(ordinal, frame)
            except (OSError, DamageError):
                continue
            yield from _written_by(opened, wanted, length_of)

    def _from_writes(self, wanted: dict[int, int], length_of: _LengthOf) -> Iterator[_Found]:
        for opened in self._writes.newest_frames(WRITES_BYTES_MAX):
            yield from _written_by(opened, wanted, length_of)


def _written_by(
    opened: OpenedFrame, wanted: dict[int, int], length_of: _LengthOf
) -> Iterator[_Found]:
    """By writes that cover the block whole. Which disk they are of does not matter: the sum
    tells."""
    for _, record in opened.records:
        if record.type != RecordType.WRITE:
            continue
        for key in wanted:
            at = key_parts(key)[1] * BLOCK_BYTES - record.offset
            if at >= 0 and at + length_of(key) <= record.length:
                yield key, bytes(record.payload[at : at + length_of(key)])


def _length(disk: Disk, key: int) -> int:
    return min(BLOCK_BYTES, disk.size_bytes - key_parts(key)[1] * BLOCK_BYTES)
