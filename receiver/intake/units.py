# SPDX-License-Identifier: Apache-2.0
"""A frame as what goes into batches: units, which a batch takes whole or not at all. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from journal.record import Record
from replicator.wire.frames import OpenedFrame


@dataclass(frozen=True, slots=True)
class Unit:
    """Records that go into a batch together, and where the log stands behind them."""

    records: Sequence[tuple[int, Record]]
    end_lsn: int


def units_of(frame: OpenedFrame, from_lsn: int) -> list[Unit]:
    """Those of a frame that lie at or behind `from_lsn`, which is no LSN inside a record."""
    if frame.header.reduced:
        return [Unit(frame.records, frame.header.end_lsn)]
    return [
        Unit([(lsn, record)], lsn + record.size) for lsn, record in frame.records if lsn >= from_lsn
    ]
