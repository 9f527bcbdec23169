# SPDX-License-Identifier: Apache-2.0
"""Where the receiver's orders are recorded: the audit log, with the heads of the histories.

Each order is recorded before it is carried out and after; one that cannot be recorded is refused.
An entry also holds the heads of the histories that were sealed further since the entry before, and
once a day an entry is written for them alone; and how far each group has come (its open end), for
which an entry is written once a minute while one moves, and never when all are idle. By that the
next opening sees whether an older history was put back (receiver.fitting).

Where the chain ends is kept in the catalog, and said in the daemon's log, which usually leaves the
machine: so an audit that was cut short shows.

An audit that had entries, and of which nothing is left, is *gone*: who took it away may have had
something to hide, so orders are refused until it is put back, or a person accepts that it is lost
(`accept`). Nothing is begun in its place before that, so a restart finds the same.

Failures. Audit and catalog are shared by all groups. Where one of them cannot be used, orders are
refused, with the reason; nothing is kept from replicating.

Concurrency: the event loop's thread alone; an entry costs one fdatasync there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from receiver.audit.answers import audit_verdict, list_audit
from receiver.audit.chain import (
    HEADS_ORDER,
    Break,
    Fact,
    Head,
    Link,
    OpenEnd,
    Seen,
)
from receiver.audit.heads import (
    Stretch,
    is_set_back,
    moved,
    newest_seen,
    news,
    reached_by,
    rewritten_news,
)
from receiver.audit.log import AuditLog, is_gone, open_audit, read_entries, verify_audit
from receiver.audit.watch import HistoryWatch
from receiver.catalog import Catalog
from receiver.data_dir.reserve import UNRESERVED, Room
from receiver.points.evidence import Reached
from replicator.base.clock import NS_PER_S
from replicator.base.errors import NoSpaceError, ReplicatorError, UsageError
from replicator.base.mishaps import mishap
from replicator.base.storage import Storage
from replicator.base.trouble import is_bug, words_of
from replicator.control.orders import ACCEPT_AUDIT, FORGET
from replicator.control.types import AuditRecord, AuditVerdict

DAY_NS = 86_400 * NS_PER_S
ENDS_NS = 60 * NS_PER_S

Ends = Callable[[], Mapping[str, OpenEnd]]

_log = structlog.get_logger(__name__)


class Recorder:
    """See the head of this file. `watch` knows the recovered groups' histories; `refuses`: why no
    order may be carried out, though this audit may be sound."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        catalog: Catalog,
        now_ns: Callable[[], int],
        watch: HistoryWatch,
        refuses: str = "",
        ends: Ends = dict,
        *,
        room: Room = UNRESERVED,
    ) -> None:
        """`ends`: how far each group has come that can be read."""
        self._room = room
        self._storage = storage
        self._directory = directory
        self._catalog = catalog
        self._now_ns = now_ns
        self._watch = watch
        self._heads: dict[str, Head] = {}
        self._rewritten: dict[str, dict[int, str]] = {}
        self._ends: dict[str, OpenEnd] = {}
        self._ends_now = ends
        self._reached: dict[str, Reached] = {}
        self._noted_ns = self._ended_ns = 0
        self._audit: AuditLog | None = None
        self._gone: Link | None = None
        """Where the chain ended of an audit of which nothing is left."""
        self._gone_breaks: list[Break] = []
        self.refuses = refuses
        """Why orders are refused; empty if they are not."""
        self.remedy = f"look after {directory.parent}, and restart the receiver"
        """What to do about that."""
        try:
            kept = catalog.audit_link()
            if kept is not None and is_gone(storage, directory, kept):
                self._say_gone(kept)
                return
            self._audit = open_audit(storage, directory, now_ns, kept=kept)
            heads, self._rewritten, self._ends = newest_seen(read_entries(storage, directory))
        except Exception as error:  # noqa: BLE001 - a supervision: orders end here, replication not
            self._fail(error, "open")
            return
        self._reached = {
            group: reached_by(heads.get(group), self._ends.get(group))
            for group in {*heads, *self._ends}
        }
        for each in self._audit.breaks:
            _log.error("audit.broken", file=each.file, offset=each.offset, problem=each.problem)

    @property
    def breaks(self) -> list[Break]:
        return self._gone_breaks if self._audit is None else self._audit.breaks

    def reached(self, group: str) -> Reached:
        """How far the audit had seen the group when the receiver started. Any thread."""
        return self._reached.get(group, Reached())

    @property
    def link(self) -> Link:
        """The end of the chain."""
        return (self._gone or Link()) if self._audit is None else self._audit.link

    def listed(self, since_ns: int | None, limit: int) -> list[AuditRecord]:
        """Any thread."""
        return list_audit(self._storage, self._directory, since_ns, limit)

    def stretches(self) -> dict[str, list[Stretch]]:
        """The histories as they were last looked at, to be verified: all of it noted."""
        self.note_heads()
        return self._watch.stretches()

    def verify(self, histories: Mapping[str, Sequence[Stretch]]) -> AuditVerdict:
        """Any thread."""
        return audit_verdict(self._storage, self._directory, self.link, histories)

    def record(self, fact: Fact, *, time_ns: int | None = None) -> None:
        """Durable when this returns. ReplicatorError: it is not recorded. What accepts that the
        audit is gone is recorded at its end, in the one that it begins."""
        if self._gone is not None and fact.order == ACCEPT_AUDIT.audit:
            return
        if self.refuses:
            raise ReplicatorError(f"no order is carried out now: {self.refuses}", hint=self.remedy)
        self._append(fact, time_ns)

    def _append(self, fact: Fact, time_ns: int | None = None) -> None:
        if self._audit is None:
            raise ReplicatorError(f"nothing can be recorded in the audit: {self.refuses}")
        changed = self._news()
        try:
            link = self._appended(self._audit, fact, changed, time_ns)
        except OSError as error:
            said = mishap(error)
            raise type(said)(
                f"the order cannot be recorded in the audit: {said.message}",
                hint=f"free some space under {self._directory}"
                if isinstance(said, NoSpaceError)
                else f"look after {self._directory}, and restart the receiver",
            ) from error
        self._heads.update(changed.heads)
        for group, digests in changed.rewritten.items():
            self._rewritten.setdefault(group, {}).update(digests)
        self._ends.update(changed.ends)
        if fact.order == FORGET.audit and fact.outcome == "done":
            for seen in (self._heads, self._rewritten, self._ends):
                seen.pop(fact.object, None)  # if it was a mere question: noted once more
        if changed.heads:
            self._noted_ns = self._now_ns()
        if changed.ends:
            self._ended_ns = self._now_ns()
        _log.info("audit.entry", sequence=link.sequence, order=fact.order, digest=link.digest)
        try:
            self._catalog.keep_audit_link(link)
        except sqlite3.Error as error:
            _log.warning("audit.link_not_kept", error=str(error))

    def _appended(self, audit: AuditLog, fact: Fact, seen: Seen, time_ns: int | None) -> Link:
        return self._room.with_room(lambda: audit.append(fact, seen, time_ns=time_ns), "the audit")

    def note_heads(self) -> None:
        """What a compaction has made, and a group that was set back, at once; where the histories
        are sealed, at the first call and once a day, and how far the groups have come, once a
        minute: if they have moved."""
        now_ns, changed = self._now_ns(), self._news()
        is_due = not self._noted_ns or now_ns - self._noted_ns >= DAY_NS
        if is_due:
            self._noted_ns = now_ns
        since_ns = now_ns - self._ended_ns
        ends_are_due = (
            is_set_back(self._ends, changed.ends) or since_ns >= ENDS_NS or since_ns < 0
        ) and bool(changed.ends)
        if not changed.rewritten and not (is_due and changed.heads) and not ends_are_due:
            return
        if self._audit is None:
            return
        try:
            self._append(Fact(HEADS_ORDER, message=_about(changed)))
        except ReplicatorError as error:
            _log.error("audit.heads_not_noted", error=error.message)
        except Exception as error:  # noqa: BLE001 - a supervision
            self._fail(error, "append")

    def _news(self) -> Seen:
        now = self._watch.look()
        return Seen(
            news(self._heads, now.heads),
            rewritten_news(self._rewritten, now.rewritten),
            moved(self._ends, self._ends_now()),
        )

    def import_from_catalog(self) -> None:
        """Takes over the entries of a catalog of the first release, which kept the audit itself."""
        if self._audit is None:
            return
        try:
            for time_ns, fact in self._catalog.imported_audit():
                self._append(fact, time_ns)
            self._catalog.forget_imported_audit()
        except (ReplicatorError, sqlite3.Error) as error:
            _log.error("audit.import_failed", error=str(error))

    def close(self) -> None:
        """Notes what is left to note; the histories do not change any more."""
        if self._audit is not None and self._news().rewritten:
            self.note_heads()
        if self._audit is not None:
            self._audit.close()

    def accept(self) -> int:
        """The audit that is gone does not come back: another one begins, with the break named in
        it. How many entries are lost. Raises UsageError, OSError."""
        gone = self._gone
        if gone is None:
            raise UsageError(
                "the audit is not gone: there is nothing to accept",
                hint="`replicator audit verify` says what is wrong with it, if anything is",
            )
        self._audit = self._room.with_room(
            lambda: open_audit(self._storage, self._directory, self._now_ns, kept=gone),
            "the audit",
        )
        self._gone, self.refuses = None, ""
        _log.warning("audit.accepted", lost=gone.sequence)
        return gone.sequence

    def _say_gone(self, kept: Link) -> None:
        self._gone = kept
        self._gone_breaks = verify_audit(self._storage, self._directory, kept).breaks
        count = f"{kept.sequence} entries" if kept.sequence > 1 else "its one entry"
        self.refuses = self.refuses or f"the audit is gone: {self._directory} has none of {count}"
        self.remedy = (
            f"put {self._directory} back and restart the receiver; if it is lost,"
            " `replicator audit accept --reason TEXT` begins it anew"
        )
        _log.error("audit.gone", directory=str(self._directory), entries=kept.sequence)

    def _fail(self, error: Exception, what: str) -> None:
        """The audit is of no use any more, until the receiver is started anew."""
        of_catalog = isinstance(error, sqlite3.Error)
        said = f"the catalog: {error}" if of_catalog else words_of(error).message
        self._audit = None
        self.refuses = self.refuses or f"the audit cannot be used: {said}"
        _log.error(
            "audit.unusable",
            directory=str(self._directory),
            what=what,
            error=said,
            exc_info=error if is_bug(error) and not of_catalog else None,
        )


def _about(seen: Seen) -> str:
    made = [
        f"{group} at {', '.join(map(str, sorted(digests)))}"
        for group, digests in seen.rewritten.items()
    ]
    return f"compacted: {'; '.join(made)}" if made else ""
