# SPDX-License-Identifier: Apache-2.0
"""What the DR site costs and gives: apply, write amplification, views, rollback, compaction.

Every rate stands beside a peer that was measured in the same round: the same blocks, written or
copied by a plain loop of system calls with one fdatasync for each 48 MiB. Amplification and sizes
are counts of bytes: they do not depend on the machine. Views are read by nbdcopy, and so is the
replica itself, through the same server. The second table shows how the figures grow
with the disk and with the number of points; it gives the curve, and has no peer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import msgspec
import structlog
import uvloop
from rich.table import Table

from receiver.apply.batch import BATCH_BYTES
from receiver.blocks.holes import Extents
from receiver.group.group import GroupReplica
from receiver.group.worker import GroupWorker
from receiver.orders.choosing import Chooser
from receiver.orders.groups import KnownGroups
from receiver.orders.points import PointOrders
from receiver.points.values import Point as CorePoint
from receiver.restore.restore import RestoreOrder, restore_view
from receiver.views.files import ViewDisk
from receiver.views.open_views import Views
from replicator.base.clock import SystemClock
from replicator.base.units import GIB, KIB, MIB, format_size
from replicator.control.requests import PointPageRequest, PointsRequest
from replicator.control.service import Call
from replicator.control.types import Point
from tests.bench import sums
from tests.bench.history_feed import Feed, fed, scattered

SPAN_BYTES = 256 * MIB
CHANGED_BYTES = 128 * MIB
HOT_BYTES = 16 * MIB
CUT_BYTES = 8 * MIB
DISKS = (1 * GIB, 4 * GIB, 16 * GIB, 64 * GIB)
POINTS = (1_000, 10_000, 100_000)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row. `peer` is None where the figure is a count or a duration."""

    measure: str
    ours: Sequence[float]
    unit: str
    peer: Sequence[float] | None = None
    peer_name: str = ""
    target: str = ""

    def row(self) -> list[str]:
        ours = statistics.median(self.ours)
        digits = 0 if ours >= 100 else 2
        shown = f"{ours:,.{digits}f} {self.unit}"
        if self.peer is None:
            return [self.measure, shown, "", "", self.target]
        peer = statistics.median(self.peer)
        ratio = f"{ours / peer:.2f}"
        return [
            self.measure,
            shown,
            f"{self.peer_name} {peer:,.0f} {self.unit}",
            ratio,
            self.target,
        ]


def seconds_of(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def history_table(rounds: int) -> Table:
    table = Table(title="History (medians)")
    for heading in ("measure", "ours", "peer", "ours / peer", "target"):
        table.add_column(heading, justify="left" if heading in ("measure", "peer") else "right")
    for figures in (_apply(4 * KIB, rounds), _apply(64 * KIB, rounds), [_hot()]):
        for figure in figures:
            table.add_row(*figure.row())
        table.add_section()
    for figure in [*_views(rounds), *_rollback(rounds), _compaction(rounds)]:
        table.add_row(*figure.row())
    table.add_section()
    for figure in [_restore(rounds), *_sums(rounds)]:
        table.add_row(*figure.row())
    return table


def growth_table(points: Sequence[int] = POINTS) -> Table:
    table = Table(title="Growth")
    for heading in (
        "disk",
        "points",
        "images",
        "open at oldest",
        "read",
        "rollback",
        "start",
        "without summaries",
        "list 50",
        "list all",
    ):
        table.add_column(heading, justify="right")
    for disk_bytes in DISKS:
        table.add_row(*_grown(disk_bytes, 100, 20_000))
    table.add_section()
    for count in points:
        table.add_row(*_grown(1 * GIB, count, count))
    return table


# -- apply


def _filled(feed: Feed) -> None:
    """Content to be replaced."""
    feed.writes(range(0, SPAN_BYTES, 64 * KIB), 64 * KIB, per_cut=512)
    feed.apply_all()


def _apply(block_bytes: int, rounds: int) -> list[Figure]:
    ours: list[float] = []
    peers: list[float] = []
    amplification = history = 0.0
    count = CHANGED_BYTES // block_bytes
    for seed in range(rounds):
        with fed(1 * GIB) as feed:
            _filled(feed)
            offsets = scattered(count, block_bytes, SPAN_BYTES, seed=seed)
            before = feed.group.history.segment_set.used_bytes
            feed.storage.written_bytes = 0
            feed.writes(offsets, block_bytes, per_cut=CUT_BYTES // block_bytes)
            ours.append(CHANGED_BYTES / MIB / seconds_of(feed.apply_all))
            amplification = feed.storage.written_bytes / CHANGED_BYTES
            history = (feed.group.history.segment_set.used_bytes - before) / CHANGED_BYTES
            peers.append(CHANGED_BYTES / MIB / _plain_writes(feed.home, offsets, block_bytes))
    what = f"random {format_size(block_bytes)}"
    return [
        Figure(f"apply, {what}", ours, "MiB/s", peers, "plain pwrite", ""),
        Figure(f"write amplification, {what}", [amplification], "B/B", target="≤ 2.2"),
        Figure(f"history per changed byte, {what}", [history], "B/B"),
    ]


def _plain_writes(home: Path, offsets: Sequence[int], block_bytes: int) -> float:
    """Seconds for the same blocks, without history, into a file that holds data already."""
    content = os.urandom(block_bytes)
    path = home / "plain.raw"
    with path.open("wb") as file:
        file.write(bytes(1 * MIB) * (SPAN_BYTES // MIB))
        file.flush()
        os.fsync(file.fileno())
    fd = os.open(path, os.O_RDWR)
    try:

        def write() -> None:
            for count, offset in enumerate(offsets, start=1):
                os.pwrite(fd, content, offset)
                if count * block_bytes % BATCH_BYTES == 0:
                    os.fdatasync(fd)
            os.fdatasync(fd)

        return seconds_of(write)
    finally:
        os.close(fd)
        path.unlink()


def _hot() -> Figure:
    """A working set that is written again and again between two cuts."""
    with fed(1 * GIB) as feed:
        _filled(feed)
        feed.storage.written_bytes = 0
        total = 0
        for seed in range(3):
            offsets = [
                offset
                for turn in range(8)
                for offset in scattered(HOT_BYTES // 4096, 4096, HOT_BYTES, seed=8 * seed + turn)
            ]
            total += feed.writes(offsets, 4096, per_cut=len(offsets) + 1)
        feed.apply_all()
        amplification = feed.storage.written_bytes / total
    name = f"write amplification, {format_size(HOT_BYTES)} written 8 times a checkpoint"
    return Figure(name, [amplification], "B/B", target="≤ 1.2")


def _restore(rounds: int) -> Figure:
    """1 GiB restored and read back, on a disk of 4 TiB, beside the same on one of that size."""
    ours = [_restored_seconds(4096 * GIB) for _ in range(rounds)]
    small = [_restored_seconds(1 * GIB) for _ in range(rounds)]
    return Figure("restore of 1 GiB, on 4 TiB", ours, "s", small, "on 1 GiB", "≤ 1.5")


def _restored_seconds(disk_bytes: int) -> float:
    with fed(disk_bytes, is_durable=False) as feed:
        feed.writes(range(0, 1 * GIB, 64 * KIB), 64 * KIB, per_cut=512)
        feed.apply_all()
        view = feed.group.showing.view(_newest(feed))
        target = feed.home / "restored"
        try:
            return seconds_of(
                lambda: restore_view(view, target, lambda *_: None, RestoreOrder("g"))
            )
        finally:
            view.close()


def _sums(rounds: int) -> list[Figure]:
    """What verifying old content adds to a batch, besides hashing it."""
    hashes = [sums.hash_microseconds() for _ in range(rounds)]
    found: list[Figure] = []
    for disk_bytes, is_warm in ((1 * GIB, True), (16 * GIB, True), (64 * GIB, False)):
        taken = [sums.lookup_microseconds(disk_bytes, is_warm=is_warm) for _ in range(rounds)]
        what = f"sum of a block, {format_size(disk_bytes)}, {'warm' if is_warm else 'cold'}"
        target = "≤ 0.8" if is_warm else ""
        found.append(Figure(what, taken, "µs", hashes, "hash", target))
    for disk_bytes in (16 * GIB, 64 * GIB):
        written = sums.amplification(disk_bytes, 1500)
        what = f"write amplification of sums, {format_size(disk_bytes)}"
        found.append(Figure(what, [written], "B/B", target="≤ 0.02"))
    return found


# -- views


def _views(rounds: int) -> list[Figure]:
    found: list[Figure] = []
    for percent in (0, 10, 100):
        opens: list[float] = []
        ours: list[float] = []
        raw: list[float] = []
        with fed(1 * GIB) as feed:
            _filled(feed)
            point = _newest(feed)
            count = SPAN_BYTES // 4096 * percent // 100
            if count:
                offsets = scattered(count, 4096, SPAN_BYTES, seed=1)
                feed.writes(offsets, 4096, per_cut=CUT_BYTES // 4096)
                feed.apply_all()
            for _ in range(rounds):
                opens.append(_open_milliseconds(feed, point))
                ours.append(SPAN_BYTES / MIB / _read_view(feed, point))
                raw.append(SPAN_BYTES / MIB / _read_raw(feed))
        what = f"{percent} % of it changed since"
        found.append(Figure(f"view read, {what}", ours, "MiB/s", raw, "replica", "≥ 0.5"))
        found.append(Figure(f"view open, {what}", opens, "ms"))
    return found


def _newest(feed: Feed) -> int:
    point = feed.group.points.newest
    assert point is not None
    return point.sequence


def _open_milliseconds(feed: Feed, sequence: int) -> float:
    return 1000 * seconds_of(lambda: feed.group.showing.view(sequence).close())


def _read_view(feed: Feed, sequence: int, span_bytes: int = SPAN_BYTES) -> float:
    """Seconds for `nbdcopy` to read that much through an export of the view."""
    view = feed.group.showing.view(sequence)
    try:
        return _copied(feed.home, view, span_bytes)
    finally:
        view.close()


def _read_raw(feed: Feed) -> float:
    """The same from the replica itself, through the same server."""
    with feed.replica_path.open("rb") as file:
        return _copied(feed.home, _RawDisk(file.fileno()), SPAN_BYTES)


class _Readable(Protocol):
    def read(self, name: str, offset: int, length: int) -> bytes: ...

    def extents(self, name: str, offset: int, length: int) -> Extents: ...


@dataclass(frozen=True, slots=True)
class _RawDisk:
    fd: int

    def read(self, name: str, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def extents(self, name: str, offset: int, length: int) -> Extents:
        """What is measured is reading."""
        return [(length, False)]


@dataclass(frozen=True, slots=True)
class _DiskOf:
    disks: _Readable

    def read(self, offset: int, length: int) -> bytes:
        return self.disks.read("disk", offset, length)

    def extents(self, offset: int, length: int) -> Extents:
        return self.disks.extents("disk", offset, length)


def _copied(home: Path, disks: _Readable, span_bytes: int) -> float:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return uvloop.run(_serve_and_copy(home, _DiskOf(disks), span_bytes))


async def _serve_and_copy(home: Path, disk: _DiskOf, span_bytes: int) -> float:
    views = Views(home)
    try:
        point = Point(sequence=1, time="", until="", kind="crash")
        view = await views.open("g", point, [ViewDisk("disk", span_bytes, disk)], lambda: None)
        began = time.perf_counter()
        child = await asyncio.create_subprocess_exec("nbdcopy", view.disks["disk"], "null:")
        assert await child.wait() == 0
        return time.perf_counter() - began
    finally:
        await views.close_all()


# -- rollback and compaction


def _rollback(rounds: int) -> list[Figure]:
    found: list[Figure] = []
    for block_bytes in (4 * KIB, 64 * KIB):
        ours: list[float] = []
        copies: list[float] = []
        for seed in range(rounds):
            with fed(1 * GIB) as feed:
                _filled(feed)
                point = _newest(feed)
                offsets = scattered(
                    CHANGED_BYTES // block_bytes, block_bytes, SPAN_BYTES, seed=seed
                )
                feed.writes(offsets, block_bytes, per_cut=CUT_BYTES // block_bytes)
                feed.apply_all()
                copies.append(CHANGED_BYTES / MIB / _copy(feed, sorted(offsets), block_bytes))
                taken = seconds_of(lambda feed=feed, point=point: feed.group.rollback(point))  # type: ignore[misc]
                ours.append(CHANGED_BYTES / MIB / taken)
        name = f"rollback, {format_size(block_bytes)} blocks (undoable)"
        found.append(Figure(name, ours, "MiB/s", copies, "plain copy"))
    return found


def _copy(feed: Feed, offsets: Sequence[int], block_bytes: int) -> float:
    """Seconds for a copy of these blocks of the replica, in order, to a file of that size."""
    path = feed.home / "copy.raw"
    source = os.open(feed.replica_path, os.O_RDONLY)
    target = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def copy() -> None:
        for offset in offsets:
            os.pwrite(target, os.pread(source, block_bytes, offset), offset)
        os.fdatasync(target)

    try:
        os.ftruncate(target, feed.disk_bytes)
        return seconds_of(copy)
    finally:
        os.close(source)
        os.close(target)
        path.unlink()


def _compaction(rounds: int) -> Figure:
    """Nine of ten points given up; what it reads, by the time that its steps take."""
    rates: list[float] = []
    for seed in range(rounds):
        with fed(1 * GIB) as feed:
            _filled(feed)
            offsets = scattered(2 * CHANGED_BYTES // 4096, 4096, HOT_BYTES, seed=seed)
            feed.writes(offsets, 4096, per_cut=512)
            feed.apply_all()
            points = [point.sequence for point in feed.group.points.all[:-1]]
            feed.give_up([sequence for sequence in points if sequence % 10])

            def tidy(feed: Feed = feed) -> None:
                while feed.group.tidy():
                    pass

            taken = seconds_of(tidy)
            rates.append(feed.group.known.compacted_bytes / MIB / taken)
    return Figure("compaction, history read", rates, "MiB/s")


# -- growth


def _grown(disk_bytes: int, points: int, images: int) -> list[str]:
    """Changes scattered over the whole disk. Made without syncs: only what is read is measured."""
    with fed(disk_bytes, is_durable=False) as feed:
        offsets = scattered(images, 4096, disk_bytes, seed=1)
        feed.writes(offsets, 4096, per_cut=10_000)
        feed.apply_all()
        target = _newest(feed)
        offsets = scattered(images, 4096, disk_bytes, seed=1)
        feed.writes(offsets, 4096, per_cut=max(images // points, 1))
        feed.apply_all()
        without = seconds_of(feed.restart)
        start = seconds_of(feed.restart)
        listed = [1000 * seconds_of(partial(_listed, feed, limit)) for limit in (50, None)]
        opened = _open_milliseconds(feed, target)
        read = 64 * MIB / MIB / _read_view(feed, target, 64 * MIB)
        taken = seconds_of(lambda: feed.group.rolling_back.run(target))
        return [
            format_size(disk_bytes),
            f"{points:,}",
            f"{images:,}",
            f"{opened:,.1f} ms",
            f"{read:,.0f} MiB/s",
            f"{images * 4096 / MIB / taken:,.0f} MiB/s",
            f"{start:,.2f} s",
            f"{without:,.2f} s",
            *(f"{each:,.1f} ms" for each in listed),
        ]


@dataclass(frozen=True, slots=True)
class _Worker:
    """As much of a group's worker as a list of points asks, and of whoever finds it."""

    replica: GroupReplica

    @property
    def ordered(self) -> _Worker:
        return self

    def points(self) -> list[CorePoint]:
        return self.replica.points.all

    def worker(self, _name: str) -> GroupWorker:
        return cast(GroupWorker, self)


def _listed(feed: Feed, limit: int | None) -> bytes:
    """The answer to who asks for the newest points, or for all."""
    groups = cast(KnownGroups, _Worker(feed.group))
    orders = PointOrders(groups, Chooser(SystemClock()))
    if limit is None:
        found: object = asyncio.run(orders.points(Call("g", PointsRequest(), print)))
    else:
        request = PointPageRequest(limit=limit)
        found = asyncio.run(orders.page(Call("g", request, print)))
    return msgspec.json.encode(found)
