# SPDX-License-Identifier: Apache-2.0
"""The group's disks just behind a single write: a point's view with some writes laid over it.

Reads as a PointView does, from any thread, several at a time: the overlay never changes.
"""

from __future__ import annotations

from receiver.blocks.holes import Extents, laid_over
from receiver.points.values import Point
from receiver.views.point_view import PointView
from receiver.writes.overlay import FineOverlay


class FineView:
    """See the head of this file. Owns `base`."""

    def __init__(self, base: PointView, overlay: FineOverlay) -> None:
        self._base = base
        self._overlay = overlay

    @property
    def point(self) -> Point:
        """The one that the writes lie behind."""
        return self._base.point

    @property
    def domains(self) -> dict[str, str]:
        return self._base.domains

    @property
    def disks(self) -> list[tuple[str, int]]:
        return self._base.disks

    @property
    def memory_bytes(self) -> int:
        return self._base.memory_bytes

    @property
    def allocated_bytes(self) -> int:
        """See PointView."""
        return self._base.allocated_bytes

    def read(self, name: str, offset: int, length: int) -> bytes:
        """See PointView."""
        content = self._base.read(name, offset, length)
        pieces = self._overlay.within(name, offset, offset + length)
        if not pieces:
            return content
        laid = bytearray(content)
        for piece in pieces:
            at = piece.offset - offset
            laid[at : at + piece.length] = (
                bytes(piece.length) if piece.content is None else piece.content
            )
        return bytes(laid)

    def extents(self, name: str, offset: int, length: int) -> Extents:
        """See PointView."""
        below = self._base.extents(name, offset, length)
        end = offset + sum(size for size, _ in below)
        pieces = self._overlay.within(name, offset, end)
        return laid_over(
            below, offset, [(each.offset, each.length, each.content is None) for each in pieces]
        )

    def close(self) -> None:
        """See PointView."""
        self._base.close()


GroupView = PointView | FineView


class DiskOfView:
    """One disk of a view."""

    def __init__(self, view: GroupView, name: str) -> None:
        self._view = view
        self._name = name

    def read(self, offset: int, length: int) -> bytes:
        return self._view.read(self._name, offset, length)

    def extents(self, offset: int, length: int) -> Extents:
        return self._view.extents(self._name, offset, length)
