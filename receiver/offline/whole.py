# SPDX-License-Identifier: Apache-2.0
"""Everything that can be verified under some paths: histories, audits, and what one says of the
other; as one document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from journal.segment import HEADER_BYTES, parse_header
from journal.stream_files import read_seal
from receiver.audit.heads import Stretch
from receiver.check.places import HistoryPlace, find_histories
from receiver.check.verify import HistoryVerification, SegmentReport, total_bytes
from receiver.check.walk import Fault
from receiver.history import bodies
from receiver.history.units import read_body
from receiver.offline.audit_check import AuditReport, check_audit, check_heads
from replicator.base.errors import DamageError, VersionError
from replicator.base.storage import Storage
from replicator.control.types import Progress


@dataclass(slots=True)
class HistoryReport:
    """`head` is the digest of the newest sealed segment, hex, "" without one; `head_end` the
    position up to which it stands for everything."""

    group: str
    directory: Path
    segments: list[SegmentReport]
    points: list[int]
    digests: set[str]
    head: str = ""
    head_end: int = 0
    head_faults: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[Fault]:
        return [fault for segment in self.segments for fault in segment.faults]


@dataclass(slots=True)
class Verified:
    histories: list[HistoryReport] = field(default_factory=list)
    audits: list[AuditReport] = field(default_factory=list)
    head_fault: str = ""

    @property
    def fault_count(self) -> int:
        return (
            sum(len(each.faults) + len(each.head_faults) for each in self.histories)
            + sum(len(each.breaks) for each in self.audits)
            + bool(self.head_fault)
        )

    def document(self) -> dict[str, object]:
        """As JSON."""
        faults = [_fault(fault) for each in self.histories for fault in each.faults]
        faults += [
            {"file": str(each.directory), "offset": None, "problem": problem}
            for each in self.histories
            for problem in each.head_faults
        ]
        faults += [
            {
                "file": str(audit.directory / each.file),
                "offset": each.offset,
                "problem": each.problem,
            }
            for audit in self.audits
            for each in audit.breaks
        ]
        if self.head_fault:
            faults.append({"file": None, "offset": None, "problem": self.head_fault})
        return {
            "faults": faults,
            "histories": [_history(each) for each in self.histories],
            "audits": [
                {
                    "directory": str(each.directory),
                    "entries": each.entries,
                    "head": each.link.digest,
                }
                for each in self.audits
            ],
        }


def verify_paths(
    storage: Storage,
    paths: Sequence[Path],
    expect_head: str | None,
    report: Callable[[Progress], None] = lambda _progress: None,
) -> Verified:
    """Raises NotFoundError where a path holds no history."""
    places = [place for path in paths for place in find_histories(storage, path)]
    total, done = total_bytes(storage, places), 0

    def read(size: int) -> None:
        nonlocal done
        done += size
        report(Progress(done=done, total=max(total, done), what="verifying"))

    found = Verified()
    audits: dict[Path, AuditReport | None] = {}
    for place in places:
        if place.data_dir is not None and place.data_dir not in audits:
            audits[place.data_dir] = check_audit(storage, place.data_dir)
        history = _verify(HistoryVerification(storage, place, read), place)
        audit = audits.get(place.data_dir) if place.data_dir is not None else None
        if audit is not None:
            end = max((each.stands_until for each in history.segments), default=0)
            history.head_faults += check_heads(audit, place.group, history.segments, end)
        found.histories.append(history)
    found.audits = [audit for audit in audits.values() if audit is not None]
    if expect_head is not None and not any(expect_head in each.digests for each in found.histories):
        found.head_fault = (
            f"no sealed segment has the digest {expect_head}, or stands for one that had: the"
            " history was changed or cut off, or retention has removed that segment"
        )
    return found


def head_of(storage: Storage, place: HistoryPlace) -> tuple[int, str]:
    """(position, digest) of the newest sealed segment, as its seal has it; (0, "") without one."""
    stretches = sealed_stretches(storage, place)
    return (stretches[-1].end, stretches[-1].digest) if stretches else (0, "")


def sealed_stretches(storage: Storage, place: HistoryPlace) -> list[Stretch]:
    """What the seals of a history say, where they can be read at all."""
    found: list[Stretch] = []
    for segment in place.segments(storage):
        with closing(storage.open(segment.path)) as file, suppress(DamageError, VersionError):
            where, first = str(segment.path), segment.first_lsn
            parse_header(file.pread(HEADER_BYTES, 0), where)
            seal = read_seal(file, first)
            if seal is not None:
                state = read_body(file, first, first, bodies.StateBody, where)
                stands = state.stands_for
                if stands is None:
                    found.append(Stretch(first, seal.end_lsn, seal.digest.hex()))
                else:
                    linked, own = stands.digest.hex(), seal.digest.hex()
                    found.append(Stretch(first, stands.end, linked, own))
    return found


def _verify(verification: HistoryVerification, place: HistoryPlace) -> HistoryReport:
    segments = list(verification.run())
    history = HistoryReport(
        place.group,
        place.directory,
        segments,
        sorted(verification.points),
        {digest.hex() for digest in verification.digests},
    )
    for segment in segments:
        if segment.is_sealed:
            history.head, history.head_end = segment.linked.hex(), segment.stands_until
    return history


def _history(history: HistoryReport) -> dict[str, object]:
    return {
        "group": history.group,
        "directory": str(history.directory),
        "head": {"end": history.head_end, "digest": history.head or None},
        "points": history.points,
        "segments": [_segment(each) for each in history.segments],
    }


def _segment(segment: SegmentReport) -> dict[str, object]:
    return {
        "file": str(segment.path),
        "good": not segment.faults,
        "bytes": segment.size_bytes,
        "first": segment.first,
        "end": segment.stands_until,
        "batches": segment.batches,
        "images": segment.images,
        "points": segment.points,
        "digest": segment.digest.hex() or None,
        "notes": segment.notes,
    }


def _fault(fault: Fault) -> dict[str, object]:
    return {"file": str(fault.file), "offset": fault.offset, "problem": fault.problem}
