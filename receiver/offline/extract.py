# SPDX-License-Identifier: Apache-2.0
"""The images of a point, made from a bare group directory: history and replica, no daemon.

For each block: the earliest before-image behind the point, else the replica. So the batches behind
the point are read oldest first, and an image is written where none was yet; a byte a block
remembers where. What is left at the end is copied from the replica. That is one pass over the
history behind the point, in bounded memory whatever its size, and every image is verified by its
checksum; what is bad stops it with file and offset, and no file is left.

History and replica may be of different times: a person put them side by side. `disks/applied` says
which batch the replica holds (receiver.fitting.applied). A history that ends in front of that makes
no point at all, and a replica that ends in front of a point's batch does not make that point. Nor
does an image that a receiver had in doubt (receiver.damage.doubt) and has not read back to its end.
What nothing here tells is whether an image is the one that was written: in a copy each is another
file. A receiver that opens the group finds out, by the sums.

Nothing but the new images is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from xxhash import xxh3_64_intdigest

from journal.record import HEADER, HEADER_BYTES, RecordType
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from receiver.check.places import HistoryPlace
from receiver.check.read_only import ReadOnlyStorage
from receiver.damage.damage import refuse
from receiver.fitting.applied import NAME as SLOTS_NAME
from receiver.fitting.applied import read_applied
from receiver.fitting.voucher import UNVERIFIED
from receiver.history.batches import Batch
from receiver.history.images import BLOCK_BYTES, Image, block_key
from receiver.history.packing import unpack
from receiver.history.units import read_table
from receiver.offline.reading import BareIndex, BareSegment, batches_of, segments_behind
from receiver.points.values import Point, PointDisk
from replicator.base.errors import (
    DamageError,
    NoPointError,
    NotFoundError,
    ReplicatorError,
    UsageError,
)
from replicator.base.mishaps import mishap
from replicator.base.storage import File, Storage, write_all
from replicator.base.units import KIB

COPY_BYTES = 256 * KIB
_BLOCKS_MAX = 1 << 40

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class _Target:
    """A disk being written. `done` has a byte for each block, 1 where its content is settled."""

    disk: PointDisk
    path: Path
    file: File
    replica: File
    done: bytearray


def extract(
    storage: Storage,
    place: HistoryPlace,
    index: BareIndex,
    point: Point,
    directory: Path,
    *,
    only: Sequence[str] = (),
    progress: Progress = lambda _done, _total: None,
) -> list[Path]:
    """The files written. Raises NoPointError, NotFoundError, UsageError, DamageError,
    NoSpaceError, ReplicatorError."""
    disks = _members(point, only)
    number = _batch_of(index, point)
    _check_side_by_side(storage, place, index, replace(point, members=tuple(disks)), number)
    _check_tail(storage, place, index)
    if index.group is not None:
        refuse(index.group.damage, replace(point, members=tuple(disks)), number, place.group)
    images = {disk.name: directory / f"{disk.name}.raw" for disk in disks}
    texts = {directory / f"{name}.xml": text for name, text in _domains(index, point, only)}
    _refuse_existing(storage, [*images.values(), *texts])
    written: list[Path] = []
    is_new, is_done = not storage.exists(directory), False
    try:
        storage.make_directory(directory)
        with ExitStack() as closing_all:
            targets: dict[int, _Target] = {}
            for disk in disks:
                target = _open_target(storage, place, disk, images[disk.name], closing_all)
                written.append(target.path)
                target.file.truncate(disk.size_bytes)
                targets[disk.slot] = target
            _write_images(storage, place, index, number, targets, progress)
            for target in targets.values():
                _copy_rest(target)
                target.file.datasync()
        for path, text in texts.items():
            written.append(path)
            with closing(storage.create(path)) as file:
                write_all(file, [text.encode()], 0)
                file.datasync()
        storage.sync_directory(directory)
        is_done = True
    except OSError as error:
        raise _mishap(error, directory) from error
    finally:
        if not is_done:  # an interruption by the keyboard, too, leaves nothing behind
            _remove(storage, written, directory if is_new else None)
    return written


def _remove(storage: Storage, written: list[Path], directory: Path | None) -> None:
    with suppress(OSError):
        for path in written:
            storage.unlink(path)
        if directory is not None:
            storage.remove_directory(directory)


def _mishap(error: OSError, directory: Path) -> ReplicatorError:
    said = mishap(error)
    return type(said)(f"extracting into {directory}: {said.message}")


# -- what lies side by side


def _check_side_by_side(
    storage: Storage, place: HistoryPlace, index: BareIndex, point: Point, number: int
) -> None:
    """E1 of receiver.points.evidence; without it, nothing is known."""
    path = place.group_dir / "disks" / SLOTS_NAME
    applied = read_applied(storage, path)
    if applied is None:
        return
    newest = max((each.last_batch for each in index.segments), default=0)
    if applied.history != place.stream.stream:
        raise DamageError(
            f"{path.parent} is another group's", hint="put this group's own beside it"
        )
    if applied.number > newest:
        raise DamageError(
            f"{place.folder} ends before what {path.parent} holds: it is older, or its newest part"
            " is lost",
            hint="put the newer history beside it",
        )
    doubted = [each.name for each in point.members if applied.images.get(each.image) == UNVERIFIED]
    if doubted:
        raise NoPointError(
            f"point {point} is not verified: by {path} the replica of disk {', '.join(doubted)} may"
            " hold another moment than its history says",
            hint="start the receiver: its scrub reads it back, and what is wrong is on record then",
        )
    if number > applied.number + 1:  # that one may be in it: it was stated before it came
        raise NoPointError(
            f"point {point} came later than what {path.parent} is known to hold",
            hint="take an older point, put the newer replica beside the history, or start the"
            " receiver, which finds out what it holds",
        )


# -- what is asked for


def _members(point: Point, only: Sequence[str]) -> list[PointDisk]:
    names = {disk.name for disk in point.members}
    if strangers := sorted(set(only) - names):
        raise NotFoundError(
            f"point {point} has no disk {strangers[0]!r}", hint=f"it has {', '.join(sorted(names))}"
        )
    return [disk for disk in point.members if not only or disk.name in only]


def _batch_of(index: BareIndex, point: Point) -> int:
    _, number = index.points[point.sequence]
    if index.unapplied is not None and index.unapplied.number == number:
        raise NoPointError(
            f"point {point} is in the history, but its batch may not be in the replica yet",
            hint="take an older point, or start the receiver, which applies it from the inbox",
        )
    return number


def _domains(index: BareIndex, point: Point, only: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name, digest in point.domains.items():
        if not only and digest in index.texts:
            yield name, index.texts[digest]


def _refuse_existing(storage: Storage, paths: list[Path]) -> None:
    for path in paths:
        if storage.exists(path):
            raise UsageError(f"{path} exists already", hint="nothing is overwritten here")


def _open_target(
    storage: Storage, place: HistoryPlace, disk: PointDisk, path: Path, closing_all: ExitStack
) -> _Target:
    source = place.group_dir / "disks" / f"{disk.image}.raw"
    if not storage.exists(source):
        raise NotFoundError(
            f"{source}: the replica of disk {disk.name!r} is not here",
            hint="a history holds only what was overwritten; the rest is in the replica",
        )
    replica = ReadOnlyStorage(storage).open(source)
    closing_all.callback(replica.close)
    if replica.size() < disk.size_bytes:
        raise DamageError(
            f"{source}: has {replica.size()} bytes, the point's disk has {disk.size_bytes}"
        )
    file = storage.create(path)
    closing_all.callback(file.close)
    return _Target(disk, path, file, replica, bytearray(-(-disk.size_bytes // BLOCK_BYTES)))


def _check_tail(storage: Storage, place: HistoryPlace, index: BareIndex) -> None:
    """An incomplete batch at the end has not touched the replica, if what it had read of that is
    still there."""
    if index.tail is None or index.before is None or index.group is None:
        return
    names = {disk.slot: disk for disk in index.group.disks}
    for image in index.tail.images:
        disk = names.get(image.slot)
        if disk is None:
            continue
        path = place.group_dir / "disks" / f"{disk.name}.raw"
        length = min(image.length, disk.size_bytes - image.offset)
        content = image.content if image.content is not None else bytes(length)
        with closing(storage.open(path)) as file:
            if file.pread(length, image.offset) != content:
                raise DamageError(
                    f"{index.tail.where}: this batch looks incomplete, but {path} no longer holds"
                    f" at offset {image.offset} what the batch found there"
                )


# -- writing


def _write_images(
    storage: Storage,
    place: HistoryPlace,
    index: BareIndex,
    number: int,
    targets: dict[int, _Target],
    progress: Progress,
) -> None:
    segments = list(segments_behind(index, number))
    total = sum(segment.end - segment.file.first_lsn for segment in segments)
    done = 0
    for segment in segments:
        batches = batches_of(storage, place, segment)
        with closing(storage.open(segment.file.path)) as file:
            for batch in batches:
                if batch.number > number:
                    _write_batch(segment, file, batch, targets)
                progress(done + batch.end - segment.file.first_lsn, total)
        done += segment.end - segment.file.first_lsn


def _write_batch(
    segment: BareSegment, file: File, batch: Batch, targets: dict[int, _Target]
) -> None:
    first = segment.file.first_lsn
    table = read_table(file, first, batch.begin, str(segment.file.path))
    for slot, target in targets.items():
        low, high = block_key(slot, 0), block_key(slot, _BLOCKS_MAX)
        for row in range(*table.rows_within(low, high)):
            image = table.image(row)
            blocks = target.done[image.block : image.block + image.blocks]
            if not all(blocks):
                _write_image(segment, file, image, blocks, target)


def _write_image(
    segment: BareSegment, file: File, image: Image, blocks: bytearray, target: _Target
) -> None:
    """Writes those blocks of it that are not settled yet."""
    content = memoryview(_read_image(segment, file, image))
    for first, end in _runs(blocks):
        if image.stored:  # zeroes are there already
            start = (image.block + first) * BLOCK_BYTES
            room = target.disk.size_bytes - start
            piece = content[first * BLOCK_BYTES : end * BLOCK_BYTES][:room]
            write_all(target.file, [piece], start)
    target.done[image.block : image.block + len(blocks)] = b"\1" * len(blocks)


def _read_image(segment: BareSegment, file: File, image: Image) -> bytes:
    offset = SEGMENT_HEADER_BYTES + image.position - segment.file.first_lsn
    data = file.pread(HEADER_BYTES + image.stored, offset)
    content = data[HEADER_BYTES:]
    kind = RecordType.ZERO
    if image.stored:
        kind = RecordType.PACKED_WRITE if image.packed else RecordType.WRITE
    if len(data) == HEADER_BYTES + image.stored:
        found, _, slot, _, place, _, _, _, total, _, _ = HEADER.unpack_from(data)
        expected = (kind, image.slot, image.block * BLOCK_BYTES)
        if (found, slot, place) == expected and xxh3_64_intdigest(content) == total:
            where = str(segment.file.path)
            return unpack(content, image.blocks, where) if image.packed else content
    raise DamageError(
        f"{segment.file.path}: before-image at offset {offset} fails its checksum",
        hint="newer points can be extracted; replicator journal verify lists what is bad",
    )


def _runs(done: bytearray) -> Iterator[tuple[int, int]]:
    """[(first, end)) of the blocks that are not done."""
    first = done.find(0)
    while first >= 0:
        end = done.find(1, first)
        end = len(done) if end < 0 else end
        yield first, end
        first = done.find(0, end)


def _copy_rest(target: _Target) -> None:
    """What no image settled is as it is in the replica."""
    size = target.disk.size_bytes
    for first, end in _runs(target.done):
        start, stop = first * BLOCK_BYTES, min(end * BLOCK_BYTES, size)
        for low, high in target.replica.data_ranges(start, stop):
            for offset in range(low, high, COPY_BYTES):
                data = target.replica.pread(min(COPY_BYTES, high - offset), offset)
                if data.count(0) != len(data):
                    write_all(target.file, [data], offset)
