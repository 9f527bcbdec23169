# SPDX-License-Identifier: Apache-2.0
"""What the audit has to say, in the control API's words. Reads the files; any thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from receiver.audit.chain import Break, Entry, Link
from receiver.audit.heads import Stretch, fault_of, newest_heads, newest_rewritten, unseen
from receiver.audit.log import read_entries, read_lines, verify_audit
from replicator.base.storage import Storage
from replicator.control.types import AuditFault, AuditRecord, AuditVerdict


def list_audit(
    storage: Storage, directory: Path, since_ns: int | None, limit: int
) -> list[AuditRecord]:
    """The newest `limit` entries from `since_ns` on, oldest first."""
    newest: deque[Entry] = deque(maxlen=limit)
    for entry in read_entries(storage, directory):
        if since_ns is None or entry.time_ns >= since_ns:
            newest.append(entry)
    return [_record(entry) for entry in newest]


def audit_verdict(
    storage: Storage,
    directory: Path,
    kept: Link | None,
    histories: Mapping[str, Sequence[Stretch]],
) -> AuditVerdict:
    """Checks the chain, up to `kept` at least, and each history that is given by its sealed
    segments against what the audit saw of it."""
    walk = verify_audit(storage, directory, kept)
    faults = [_fault(directory, each) for each in walk.breaks]
    seen = newest_rewritten(read_entries(storage, directory))
    for group, stretches in sorted(histories.items()):
        for problem in unseen(group, stretches, seen.get(group, {})):
            faults.append(AuditFault(file=None, offset=None, problem=problem))
    for group, head in sorted(newest_heads(read_entries(storage, directory)).items()):
        if group not in histories:
            continue  # it is no longer configured, or cannot be read
        sealed = histories[group]
        end = sealed[-1].end if sealed else 0
        if fault := fault_of(group, head, sealed, end):
            faults.append(AuditFault(file=None, offset=None, problem=fault))
    return AuditVerdict(entries=walk.entries, head=walk.last.digest, faults=faults)


def _fault(directory: Path, each: Break) -> AuditFault:
    return AuditFault(file=str(directory / each.file), offset=each.offset, problem=each.problem)


def _record(entry: Entry) -> AuditRecord:
    return AuditRecord(
        sequence=entry.sequence,
        time=entry.time,
        order=entry.order,
        object=entry.object,
        argument=entry.argument,
        uid=entry.uid,
        pid=entry.pid,
        outcome=entry.outcome,
        message=entry.message,
    )


def has_digest(storage: Storage, directory: Path, digest: str) -> bool:
    """Whether some entry has it, so that all before that entry is what it was then."""
    seal = b',"digest":"' + digest.encode() + b'"}\n'
    return any(line.data.endswith(seal) for line in read_lines(storage, directory))
