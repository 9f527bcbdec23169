# SPDX-License-Identifier: Apache-2.0
"""How the splitter's exports are called, and what a name proves. No I/O.

    GROUP/DISK         an external disk: whoever connects is the source
    GROUP/DISK/LSN     one sync of a libvirt disk: the LSN of its sync-begin, which no other sync of
                       the group ever had or will have, on whatever splitter

What comes over a connection is evidence for the job that opened it and for no other. QEMU keeps
the name that its job was started with, also when it reconnects, and libvirt shows it in the live
XML. So a job is begun into the export of *its* sync, and both ends can tell whose a connection,
and whose a block copy, is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExportName:
    """`sync_lsn`: the LSN of a sync-begin; None in the plain name of a disk."""

    group: str
    disk: str
    sync_lsn: int | None = None

    def __str__(self) -> str:
        plain = f"{self.group}/{self.disk}"
        return plain if self.sync_lsn is None else f"{plain}/{self.sync_lsn}"


def parse_export_name(text: str) -> ExportName | None:
    """None for what no export is called. Group and disk are not looked up here."""
    group, _, rest = text.partition("/")
    disk, slash, number = rest.partition("/")
    if not slash:
        return ExportName(group, disk) if disk else None
    if not (number.isascii() and number.isdigit() and len(number) <= len(str(1 << 64))):
        return None
    return ExportName(group, disk, int(number))
