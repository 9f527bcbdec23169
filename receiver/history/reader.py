# SPDX-License-Identifier: Apache-2.0
"""Reading a history's records where they lie: images, batch headers, extent tables.

An image is verified each time it is read: that it is the record of this block, and its checksum.
Images that lie side by side are read with one call, for a view asks for many at once.

Concurrency: any thread, but for `set_places` and `forget`. The places of the segments are one
value, replaced as a whole: a segment is in it from before its first batch can be asked for, until
it is gone. Files are kept open for reading until then; whoever reads old images (a view) pins its
point, and nothing behind a pin is removed or replaced.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_intdigest

from journal.record import HEADER, HEADER_BYTES, RecordType
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from receiver.history import bodies
from receiver.history.batches import Batch
from receiver.history.images import BLOCK_BYTES, Image, ImageTable
from receiver.history.packing import unpack
from receiver.history.tables import Tables
from receiver.history.units import read_body, read_chain_behind, read_table
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage
from replicator.base.units import KIB, MIB

GAP_BYTES_MAX = 4 * KIB
"""Images so far from each other are read together all the same: a call costs more."""
READ_BYTES_MAX = 1 * MIB


@dataclass(frozen=True, slots=True)
class _Places:
    """Where each segment begins, in order, and its file."""

    firsts: Sequence[int]
    paths: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Place:
    """Of a record."""

    path: Path
    offset: int


class HistoryReader:
    """See the head of this file. `tables` are those of the batches used last."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self._storage = storage
        self._folder = folder
        self._places = _Places([], [])
        self._files: dict[Path, File] = {}
        self._files_lock = threading.Lock()
        self.tables = Tables()

    def set_places(self, places: Sequence[tuple[int, Path]]) -> None:
        """(first position, file) of each segment there is, in order."""
        self._places = _Places([first for first, _ in places], [path for _, path in places])

    # -- images

    def read_image(self, image: Image) -> bytes:
        """The image's content, verified; whole blocks but for the last one of a disk. For
        zeroes, an empty one. Raises DamageError."""
        return self.read_images([image])[0]

    def read_images(self, images: Sequence[Image]) -> list[bytes]:
        """The same of many, in their order. Raises DamageError."""
        where = str(self._folder)
        return [
            unpack(stored, image.blocks, where) if image.packed else stored
            for image, stored in zip(images, self._read_all_stored(images), strict=True)
        ]

    def read_stored(self, image: Image) -> bytes:
        """The image's payload as it is stored, verified. Raises DamageError."""
        return self._read_all_stored([image])[0]

    def _read_all_stored(self, images: Sequence[Image]) -> list[bytes]:
        found = [b""] * len(images)
        order = sorted(
            (at for at, image in enumerate(images) if image.stored),
            key=lambda at: images[at].position,
        )
        at = 0
        while at < len(order):
            path, first, limit = self.locate(images[order[at]].position)
            start = images[order[at]].position
            stop, end = at, start
            while stop < len(order):
                image = images[order[stop]]
                behind = image.position + HEADER_BYTES + image.stored
                if (
                    image.position - end > GAP_BYTES_MAX
                    or image.position >= limit
                    or (behind - start > READ_BYTES_MAX and stop > at)
                ):
                    break
                stop, end = stop + 1, behind
            offset = SEGMENT_HEADER_BYTES + start - first
            data = self._file(path).pread(end - start, offset)
            for each in order[at:stop]:
                image = images[each]
                found[each] = _content(data, image, image.position - start, path, offset)
            at = stop
        return found

    # -- batches

    def read_begin(self, batch: Batch) -> bodies.BatchBegin:
        """The batch's header, read again. Raises DamageError."""
        path, first, _ = self.locate(batch.begin)
        return read_body(self._file(path), first, batch.begin, bodies.BatchBegin, str(path))

    def table(self, batch: Batch) -> ImageTable:
        """Where the batch's images lie. Raises DamageError."""
        table = self.tables.get(batch)
        if table is None:
            path, first, _ = self.locate(batch.begin)
            table = read_table(self._file(path), first, batch.begin, str(path))
            self.tables.put(batch, table)
        return table

    def chain_behind(self, batch: Batch) -> int:
        """The log's chain where the batch ends. Raises DamageError."""
        path, first, _ = self.locate(batch.begin)
        return read_chain_behind(self._file(path), first, batch, str(path))

    # -- files

    def locate(self, position: int) -> tuple[Path, int, int]:
        """(the segment that holds a position, where it begins, where the next one does)"""
        places = self._places
        at = bisect_right(places.firsts, position)
        if not at:
            raise DamageError(f"{self._folder}: no segment holds LSN {position}")
        limit = places.firsts[at] if at < len(places.firsts) else 1 << 64
        return places.paths[at - 1], places.firsts[at - 1], limit

    def _file(self, path: Path) -> File:
        with self._files_lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = self._storage.open(path)
            return file

    def forget(self, path: Path) -> None:
        """Before the file at `path` goes, or becomes another."""
        with self._files_lock:
            file = self._files.pop(path, None)
        if file is not None:
            file.close()

    def place_of(self, image: Image) -> Place:
        """Where the image's record lies. Raises DamageError."""
        path, first, _ = self.locate(image.position)
        return Place(path, SEGMENT_HEADER_BYTES + image.position - first)

    def close(self) -> None:
        with self._files_lock:
            for file in self._files.values():
                file.close()
            self._files.clear()


def _content(data: bytes, image: Image, at: int, path: Path, offset: int) -> bytes:
    """The payload of the image record that is to lie at `at` in `data`."""
    content = data[at + HEADER_BYTES : at + HEADER_BYTES + image.stored]
    if len(content) == image.stored:
        kind, _, slot, _, place, _, _, _, total, _, _ = HEADER.unpack_from(data, at)
        wanted = RecordType.PACKED_WRITE if image.packed else RecordType.WRITE
        if (
            kind == wanted
            and slot == image.slot
            and place == image.block * BLOCK_BYTES
            and xxh3_64_intdigest(content) == total
        ):
            return content
    raise DamageError(
        f"{path}: before-image at offset {offset + at} fails its checksum",
        hint="points older than it cannot be read where they need this block",
    )
