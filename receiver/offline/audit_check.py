# SPDX-License-Identifier: Apache-2.0
"""Checking a data_dir's audit with no daemon: its chain, its end, and what it saw of the histories.

The end of the chain is compared with the copy in catalog.db where that can be read; a catalog that
is missing or in another state than closed is no fault: it is only an index.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from receiver.audit.chain import Break, Head, Link
from receiver.audit.heads import Stretch, fault_of, newest_heads, newest_rewritten, unseen
from receiver.audit.log import read_entries, verify_audit
from receiver.check.verify import SegmentReport
from receiver.data_dir.layout import audit_dir, catalog_path
from replicator.base.storage import Storage


@dataclass(frozen=True, slots=True)
class AuditReport:
    """`heads` are those that the audit saw last of each group."""

    directory: Path
    entries: int
    link: Link
    heads: dict[str, Head]
    rewritten: dict[str, dict[int, str]]
    breaks: list[Break] = field(default_factory=list)


def check_audit(storage: Storage, data_dir: Path) -> AuditReport | None:
    """None where this data_dir has no audit, and its catalog knows of none."""
    directory, kept = audit_dir(data_dir), kept_link(catalog_path(data_dir))
    if not storage.names(directory) and kept is None:
        return None
    walk = verify_audit(storage, directory, kept)
    heads = newest_heads(read_entries(storage, directory))
    rewritten = newest_rewritten(read_entries(storage, directory))
    return AuditReport(directory, walk.entries, walk.last, heads, rewritten, walk.breaks)


def check_heads(
    report: AuditReport, group: str, segments: list[SegmentReport], end: int
) -> list[str]:
    """What is wrong with the group's history, by what the audit saw of it."""
    stretches = [
        Stretch(
            each.first,
            each.stands_until,
            each.linked.hex(),
            each.digest.hex() if each.digest != each.linked else "",
        )
        for each in segments
        if each.is_sealed
    ]
    faults = unseen(group, stretches, report.rewritten.get(group, {}))
    head = report.heads.get(group)
    fault = None if head is None else fault_of(group, head, stretches, end)
    return faults if fault is None else [*faults, fault]


def kept_link(catalog: Path) -> Link | None:
    """Where the audit ended, by a catalog."""
    if not catalog.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{catalog.as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute("SELECT sequence, digest FROM audit_link").fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else Link(*row)
