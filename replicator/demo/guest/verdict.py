# SPDX-License-Identifier: Apache-2.0
"""What the guest found when it verified its own disks. No I/O.

The guest (init.sh, role verify) says one line, `VERIFY key=value …`; this is its reader.
Per disk: `fsck` is `clean`, `errors` or `unmountable` after the journal was replayed; `records`
counts lines whose checksum holds and whose number is above the one before; `last` is the highest
such number; `bad` counts 128-byte slots of the file that hold no such record, and `shapeless`
those of them that do not even begin like one: rubbish, where a flipped bit is only bad.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from replicator.base.errors import DamageError

_LINE = re.compile(r"VERIFY((?: [a-z_]+=[a-z0-9]+)+)\s*")


@dataclass(frozen=True, slots=True)
class DiskVerdict:
    """One disk as the guest saw it."""

    fsck: str
    records: int
    last: int
    bad: int
    shapeless: int

    @property
    def intact(self) -> bool:
        """A clean filesystem that holds records 1 to `last` without a gap, and nothing else."""
        return self.fsck == "clean" and self.bad == 0 and self.records == self.last


@dataclass(frozen=True, slots=True)
class Verdict:
    """Both disks: A is written first, B second."""

    a: DiskVerdict
    b: DiskVerdict

    @property
    def rubbish(self) -> bool:
        """Most of what should be records does not look like any."""
        slots = self.a.records + self.a.bad + self.b.records + self.b.bad
        return 2 * (self.a.shapeless + self.b.shapeless) > slots

    def complaints(self, *, confirmed: int) -> list[str]:
        """Why this is not a write-order consistent copy of both disks at one moment.

        `confirmed` is a record that the guest had called safe before the copy's moment. The
        record under way then may be there, on A alone or on both, and no other. Empty: it is one.
        """
        found = [
            f"disk {name}: fsck {disk.fsck}, {disk.records} records up to {disk.last}, "
            f"{disk.bad} bad"
            for name, disk in (("A", self.a), ("B", self.b))
            if not disk.intact
        ]
        if self.b.last < confirmed:
            found.append(f"record {confirmed} was confirmed, disk B ends at {self.b.last}")
        if not self.b.last <= self.a.last <= self.b.last + 1:
            found.append(f"disk A ends at record {self.a.last}, disk B at {self.b.last}")
        return found


def parse_verdict(line: str) -> Verdict:
    """Reads the guest's line. Raises DamageError on anything else."""
    found = _LINE.fullmatch(line.strip())
    fields = dict(pair.split("=", 1) for pair in found[1].split()) if found else {}
    try:
        return Verdict(_disk(fields, "a"), _disk(fields, "b"))
    except (KeyError, ValueError):
        raise DamageError(f"the guest's verdict is unreadable: {line[:200]!r}") from None


def _disk(fields: dict[str, str], name: str) -> DiskVerdict:
    records, last, bad, shapeless = (
        int(fields[f"{key}_{name}"]) for key in ("records", "last", "bad", "shapeless")
    )
    return DiskVerdict(fields[f"fsck_{name}"], records, last, bad, shapeless)
