# SPDX-License-Identifier: Apache-2.0
"""`restore.json`: what a restore is of, and how far it has come. No I/O.

It lies beside the images as long as they are in the making, and is the first thing written and the
last one removed: `*.partial` files without it are no work of ours. A piece is believed for its sum
alone, when it is read again; so a lost or old version of this file costs time, never content.

`is_complete` is noted durably when everything is written and verified, before the first image gets
its own name. From then on, and only then, a file under its own name may be the restore's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from receiver.points.values import Point
from receiver.restore.sums import NOTHING
from replicator.base.errors import DamageError, VersionError
from replicator.base.units import MIB

FILE_NAME = "restore.json"
FILE_BYTES_MAX = 256 * MIB
"""That many pieces are disks of 400 TiB."""

READ_BYTES = 4 * MIB
PIECE_BYTES = 64 * MIB
assert PIECE_BYTES % READ_BYTES == 0

_VERSION = 2
_WHOLE_SUMS = 1
"""The version of 0.1.0: its sums were of whole pieces, zeroes and all. They are not believed, which
costs copying what it had copied."""

ImageFormat = Literal["raw", "qcow2"]
_SAME = ("group", "sequence", "time_ns", "lsn", "ordinal", "writes", "format", "unverified")
_Positive = Annotated[int, msgspec.Meta(gt=0)]
_Sum = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class DiskProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`pieces`: the sum of each piece that is written and durable, from the start on; a number
    stands for so many pieces that hold nothing."""

    name: str
    size_bytes: _Positive
    pieces: list[_Sum | _Positive] = []

    @property
    def sums(self) -> list[str]:
        """Of each piece (receiver.restore.sums)."""
        found: list[str] = []
        for each in self.pieces:
            found += [each] if isinstance(each, str) else [NOTHING] * each
        return found

    @property
    def piece_count(self) -> int:
        return sum(1 if isinstance(each, str) else each for each in self.pieces)


class RestoreProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the head of this file. `sequence` to `ordinal` are the point's; `writes` is how many
    single writes behind it belong to the images."""

    version: int = _VERSION
    group: str
    sequence: int
    time_ns: int
    lsn: int
    ordinal: int
    writes: int
    format: ImageFormat
    piece_bytes: _Positive
    made_directory: bool
    is_complete: bool = False
    unverified: bool = False
    """What is written may come from an image that was not believed
    (receiver.damage.doubt)."""
    disks: list[DiskProgress]

    def differences(self, wanted: RestoreProgress) -> Iterator[str]:
        """What keeps this from being the beginning of `wanted`, in words."""
        for name in _SAME:
            mine, its = getattr(self, name), getattr(wanted, name)
            if mine != its:
                yield f"{name} {mine} there, {its} wanted"
        mine = [(disk.name, disk.size_bytes) for disk in self.disks]
        its = [(disk.name, disk.size_bytes) for disk in wanted.disks]
        if mine != its:
            yield f"disks {_disks(mine)} there, {_disks(its)} wanted"

    def with_pieces(self, number: int, pieces: list[str]) -> RestoreProgress:
        """The same, with so much of disk `number`."""
        disks = list(self.disks)
        disks[number] = msgspec.structs.replace(disks[number], pieces=_packed(pieces))
        return msgspec.structs.replace(self, disks=disks)

    def completed(self) -> RestoreProgress:
        return msgspec.structs.replace(self, is_complete=True)

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def beginning(
    group: str,
    point: Point,
    writes: int,
    disks: list[tuple[str, int]],
    image_format: ImageFormat,
    piece_bytes: int,
    *,
    made_directory: bool,
    unverified: bool = False,
) -> RestoreProgress:
    """Of a restore of which nothing is written yet."""
    assert piece_bytes % READ_BYTES == 0
    return RestoreProgress(
        group=group,
        sequence=point.sequence,
        time_ns=point.time_ns,
        lsn=point.lsn,
        ordinal=point.ordinal,
        writes=writes,
        format=image_format,
        piece_bytes=piece_bytes,
        made_directory=made_directory,
        unverified=unverified,
        disks=[DiskProgress(name=name, size_bytes=size) for name, size in disks],
    )


def decode(text: bytes, path: str) -> RestoreProgress:
    """Raises DamageError, VersionError."""
    try:
        version = msgspec.json.decode(text, type=_Versioned).version
        if version not in (_VERSION, _WHOLE_SUMS):
            raise VersionError(
                f"{path}: version {version}, and this receiver writes {_VERSION}",
                hint="go on with the version that began it, or remove it and *.partial",
            )
        found = msgspec.json.decode(text, type=RestoreProgress)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DamageError(
            f"{path}: {error}", hint="remove it and *.partial, and restore again"
        ) from error
    if found.piece_bytes % READ_BYTES or any(
        disk.piece_count > -(-disk.size_bytes // found.piece_bytes) for disk in found.disks
    ):
        raise DamageError(
            f"{path}: its figures do not agree", hint="remove it and *.partial, and restore again"
        )
    if version == _WHOLE_SUMS:
        disks = [msgspec.structs.replace(disk, pieces=[]) for disk in found.disks]
        found = msgspec.structs.replace(found, version=_VERSION, disks=disks)
    return found


def _packed(pieces: list[str]) -> list[str | int]:
    found: list[str | int] = []
    for piece in pieces:
        last = found[-1] if found else NOTHING
        if piece != NOTHING:
            found.append(piece)
        elif isinstance(last, int):
            found[-1] = last + 1
        else:
            found.append(1)
    return found


class _Versioned(msgspec.Struct):
    version: int


def _disks(disks: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({size} bytes)" for name, size in disks)
