# SPDX-License-Identifier: Apache-2.0
"""A reader of histories made from docs/formats.md alone: it imports nothing of this project.

python by_hand.py GROUP_DIRECTORY NUMBER OUT_DIRECTORY
"""

import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from xxhash import xxh3_64_intdigest

STATE, BEGIN, COMMIT, DROPPED, IMAGES = 21, 16, 17, 20, (1, 2, 22)


def records(segment: Path) -> Iterator[tuple[Any, ...]]:
    """(type, disk, offset, length, payload) of each good record."""
    data = segment.read_bytes()
    chain, at = int.from_bytes(data[48:56], "little"), 192
    while at + 64 <= len(data):
        fields = struct.unpack_from("<BBHIQQQQQQQ", data, at)
        payload = data[at + 64 : at + 64 + fields[3]]
        good = xxh3_64_intdigest(data[at : at + 56], chain) == fields[10]
        if not good or len(payload) < fields[3] or xxh3_64_intdigest(payload) != fields[8]:
            return
        yield fields[0], fields[2], fields[4], fields[5], payload
        chain, at = fields[10], at + 64 + fields[3]


def units(group: Path) -> tuple[list[tuple[Any, list[Any]]], set[int]]:
    """The whole batches, oldest first: (header, images); and the points that were given up."""
    batches: list[tuple[Any, list[Any]]] = []
    dropped: set[int] = set()
    covered = 0
    for segment in sorted((group / "history").glob("*/*.seg")):
        if int(segment.stem, 16) < covered:
            continue  # left over
        begin: Any = None
        images: list[Any] = []
        for kind, disk, offset, length, payload in records(segment):
            body: Any = None if kind in IMAGES else msgspec.msgpack.decode(payload)
            if kind == STATE and body["stands_for"]:
                covered = body["stands_for"]["end"]
            elif kind == BEGIN:
                begin, images = body, []
            elif kind == COMMIT:
                batches.append((begin, images))
            elif kind == DROPPED:
                dropped.update(body["sequences"])
            elif kind in IMAGES:
                images.append((kind, disk, offset, length, payload))
    return batches, dropped


def main(group: Path, number: int, out: Path) -> None:
    batches, dropped = units(group)
    assert number not in dropped, "retention gave this point up"
    points = [begin["point"] and begin["point"]["sequence"] for begin, _ in batches]
    at = points.index(number)
    files = {}
    point = batches[at][0]["point"]
    for slot, name, _, size in point["members"]:
        image = point.get("images", {}).get(name, name)
        shutil.copy(group / "disks" / f"{image}.raw", out / f"{name}.raw")
        files[slot] = (out / f"{name}.raw").open("r+b"), size
        files[slot][0].truncate(size)
    for _, images in reversed(batches[at + 1 :]):
        for kind, slot, offset, length, payload in images:
            if slot in files:
                file, size = files[slot]
                content = {1: payload, 2: bytes(length)}.get(kind)
                content = zstandard.decompress(payload) if content is None else content
                file.seek(offset)
                file.write(content[: size - offset])
    for file, _ in files.values():
        file.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
