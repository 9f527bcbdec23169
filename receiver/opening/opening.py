# SPDX-License-Identifier: Apache-2.0
"""Opening a group: its parts are read, judged side by side, and only then used.

    1  read      history, inbox, single writes, sums: each by itself, as a crash left it
    2  judge     do they belong together (receiver.fitting.verdict)? A stop ends here: nothing was
                 applied or forgotten, so what is put back finds everything as it was
    3  number    the front walks what is in the inbox, and points get their numbers
    4  judge     have catalog or audit seen more than that?
    5  compare   what the replica wrote behind the batch that `disks/applied` vouches for
    6  mend      what has to go on record before an agent is taken again: in `settle`, once
                 everything in the inbox is applied

`accept` is the operator's word that what is missing does not come back. All of the replica is
compared then with the sums on record, and what is not proven is damage; a missing image becomes
zeroes; the inbox is given up; the generation rises, so no source syncs over it by itself.

Failure. A crash before 6 is durable comes to the same again. In `accept` the damage is on record
before an image of zeroes takes its place, and the statement in `disks/applied` comes last.

Concurrency: the group's apply thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from receiver.apply.applier import Applier
from receiver.apply.recovery import check_tail
from receiver.blocks.replica import Replica
from receiver.catalog import GroupCatalog
from receiver.damage import damage as rules
from receiver.damage.healing import Healer
from receiver.fitting import looking
from receiver.fitting.applied import AppliedSlots
from receiver.fitting.verdict import Action, Finding, Verdict, judge
from receiver.fitting.voucher import NOT_OF_THE_LOG, UNVERIFIED, Upto, Voucher
from receiver.history.batches import end_of, imageless_upto
from receiver.history.log import HistoryLog
from receiver.history.opening import Tail
from receiver.history.state import GroupState
from receiver.history.sums.base import SumBase
from receiver.history.sums.sums import LatestSums
from receiver.intake.inbox import Inbox
from receiver.intake.intake import Intake
from receiver.opening import ahead, compare
from receiver.opening.mending import Mending
from receiver.points.evidence import Applied, Evidence, ImageState, InboxState, Line, Reached
from receiver.points.points import PointList
from receiver.points.telling import Telling
from receiver.retention.keeping import segment_facts
from receiver.retention.stamps import mended
from receiver.scrub.scrub import Scrub
from receiver.writes.log import FineLog
from replicator.base.errors import DamageError, UsageError
from replicator.base.storage import Storage

Progress = Callable[[int, int], None]
_REPLICA_IS_RIGHT = (
    "image missing",
    "image of another size",
    "inbox gap",
    "inbox headless",
    "begun batch gone",
)
"""Stops that say nothing against those images that are there."""


def ignore_progress(_done: int, _total: int) -> None:
    """Nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a group consists of."""

    storage: Storage
    directory: Path
    history: HistoryLog
    replica: Replica
    inbox: Inbox
    fine: FineLog
    sum_base: SumBase
    left_sums: SumBase
    sums: LatestSums
    points: PointList
    applier: Applier
    intake: Intake
    healer: Healer
    scrub: Scrub
    telling: Telling
    catalog: GroupCatalog


@dataclass(frozen=True, slots=True)
class _Read:
    """Each part by itself. `before` and `state` are the group in front of the history's last batch
    and behind it."""

    before: GroupState
    state: GroupState
    tail: Tail | None
    applied: Applied | None
    evidence: Evidence


class Opening:
    """See the head of this file. `run` or `accept` first; `settle` whenever nothing is left to be
    applied."""

    def __init__(
        self, parts: Parts, slots: AppliedSlots, voucher: Voucher, reached: Callable[[], Reached]
    ) -> None:
        """`reached`: how far the audit has seen the group."""
        self._parts = parts
        self._slots = slots
        self._voucher = voucher
        self._audit_reached = reached
        self._mending: Mending | None = None
        self._sizes: dict[str, int] = {}  # by the history
        self._touched: set[str] = set()  # images, where the sums are lost that would tell
        self._given_up = (0, 0)  # of streams in the inbox: the last one, the next point behind it
        self.stopped = Verdict(())
        """Why the last opening stopped; empty if it did not."""

    @property
    def is_mending(self) -> bool:
        """Something has to go on record before an agent may feed the group. Any thread."""
        return self._mending is not None

    @property
    def unverified(self) -> frozenset[str]:
        """Disks whose images may not be the ones we wrote, until a scrub has ended. Any thread."""
        return self._voucher.unverified

    def run(self) -> None:
        """Raises DamageError, VersionError, OSError."""
        read = self._read()
        self._stop_for(judge(read.evidence))
        self._use(read)
        self._say_oldest_lost()
        self._mend_sums(read)
        evidence = self._seen_more(read)
        verdict = judge(evidence)
        self._stop_for(verdict)
        mending = self._mend(verdict)
        unverified = self._doubt(read, verdict)
        if self._compare(read):
            mending.reasons.append("its replica held older content than its history says")
        if self._is_unproven(read, unverified | self._touched):
            mending.reasons.append("what its images hold cannot be proven")
        self._voucher.resume(self._parts.applier.applied, self._begun_upto(read))
        self._begin_mending(mending)

    # -- reading

    def _read(self) -> _Read:
        parts = self._parts
        self.stopped = Verdict(())
        parts.replica.close()
        parts.replica.prepare()
        parts.sum_base.open()
        parts.left_sums.give_up()  # of a scrub by an earlier version
        parts.scrub.open()
        foreign = looking.foreign_folder(
            parts.storage, parts.directory, parts.telling.group, parts.history
        )
        before, state, tail = parts.history.open()
        parts.sums.open()
        self._sizes = {disk.name: disk.size_bytes for disk in state.disks.values()}
        parts.fine.open()
        parts.inbox.open()
        for report in parts.inbox.cut_reports:
            parts.telling.event("inbox.cut", what=report)
        applied = self._slots.open()
        evidence = Evidence(
            looking.line_of(applied, parts.history),
            looking.image_states(parts.replica, state, applied),
            self._inbox_state(state),
            is_empty=looking.is_nothing_there(
                parts.history, parts.replica, parts.inbox, parts.fine
            ),
            was_vouched=self._slots.is_unreadable or self._audit_reached().by_this_version,
            sums_beyond=parts.sum_base.upto > parts.history.batch_list.last_end.number
            or parts.sum_base.end > end_of(parts.history.opened.segments),
            fine_beyond=looking.fine_reaches_beyond(parts.fine, state),
            foreign=foreign,
            tail=self._tail_problem(before, tail),
        )
        return _Read(before, state, tail, applied, evidence)

    def _tail_problem(self, before: GroupState, tail: Tail | None) -> str:
        sizes = {disk.name: disk.size_bytes for disk in before.disks.values()}
        if tail is None or any(self._parts.replica.size_of(each) != sizes[each] for each in sizes):
            return ""
        try:
            check_tail(self._parts.replica, before, tail)
        except DamageError as error:
            return error.message
        return ""

    def _inbox_state(self, state: GroupState) -> InboxState:
        """A begun batch without frames is no matter if the replica holds all of it."""
        parts = self._parts
        found = looking.inbox_state(parts.inbox, state, parts.history.batch_list.unapplied)
        if found is not InboxState.BATCH_GONE or not self._is_whole_in_replica(state):
            return found
        return InboxState.MISSING

    def _is_whole_in_replica(self, state: GroupState) -> bool:
        parts = self._parts
        batch = parts.history.batch_list.unapplied
        assert batch is not None
        disks = list(state.disks.values())
        if any(parts.replica.size_of(disk.name) != disk.size_bytes for disk in disks):
            return False
        found = compare.written_by(parts.history, batch)
        return not compare.wrong_of(found, parts.replica, disks).any()

    # -- using

    def _use(self, read: _Read) -> None:
        """Everything read becomes the group's present, and points get their numbers."""
        parts, state = self._parts, read.state
        parts.intake.closing = parts.intake.doubtful = parts.intake.mending = False
        parts.history.accept_tail()
        if read.tail is not None:
            parts.telling.event("history.cut", where=read.tail.where, why=read.tail.label)
        parts.applier.start(read.before, state)
        if state.rollback is not None and state.rollback.writes:
            parts.fine.keep_ns = None
        self._leave_inbox(read)
        parts.points.reset(
            mended(parts.history.batch_list.points(), parts.applier.newest_state.mends)
        )
        parts.intake.start(state)
        newest = parts.points.newest
        if newest is not None:
            sequence = newest.sequence
            parts.telling.index(lambda: parts.points.hold(sequence, parts.catalog.held(sequence)))

    def _leave_inbox(self, read: _Read) -> None:
        """What it holds beyond need, because a crash came before it was removed, goes. Where the
        rest of the open stream is gone, the streams behind it go as well: their syncs say that some
        blocks are the same, which is true of a replica that had come further."""
        parts, state = self._parts, read.state
        parts.inbox.remove_closed(max(state.closed_ordinal, 0))
        unapplied = parts.history.batch_list.unapplied
        redo = unapplied is not None and unapplied.kind == "log"
        self._given_up = (0, 0)
        if read.evidence.inbox in (InboxState.MISSING, InboxState.OLDER):
            parts.intake.start(state)  # what numbers they were announced with
            front = parts.intake.front.state
            self._given_up = front.ordinal, front.next_point
            parts.inbox.remove_closed(front.ordinal)
            parts.applier.take_as_applied()
        else:
            oldest = unapplied.ordinal if redo and unapplied is not None else state.ordinal
            parts.inbox.remove_closed(oldest - 1)

    def _mend_sums(self, read: _Read) -> None:
        """Sums that are older than the history say of blocks what they held once. Then nothing is
        known of what the history has let go of: such blocks are unverified, never good. The history
        itself says what must be there: `disks/applied`, which says what was, may be as old as
        they are."""
        parts, applied = self._parts, read.applied
        self._touched = set()
        upto, own_upto = parts.sums.written
        wanted = 0 if applied is None else applied.sums_upto
        lacks = (
            applied is not None
            and upto <= applied.number
            and compare.has_let_go(parts.history, applied.number)
        )  # what the history let go of behind R had gone to the base first
        imageless = imageless_upto(parts.history.opened.segments)
        if upto < wanted or lacks or parts.sum_base.lacks(self._first, imageless):
            if applied is not None and wanted:
                self._note_touched(read, applied)
            self._forget_base()
            parts.telling.event("sums.older", upto=upto, wanted=wanted)
        elif applied is not None and own_upto < applied.own_sums_upto:
            parts.sums.forget()

    def _note_touched(self, read: _Read, applied: Applied) -> None:
        """Where sums are lost, only an image that nobody has written to since the statement was
        made at rest is known to be the one that they told of. Any other is on record as unverified
        before the base begins anew: from there on nothing tells that sums were lost."""
        replica = self._parts.replica
        is_newest = (
            applied.is_resting and applied.number == self._parts.history.batch_list.last_end.number
        )
        self._touched = {
            name
            for name, image in read.evidence.images.items()
            if image is ImageState.FITS
            and not (is_newest and not looking.was_changed(replica, applied, name))
        }
        images = dict(applied.images) | dict.fromkeys(self._touched, UNVERIFIED)
        self._slots.ensure(replace(applied, images=images))

    @property
    def _first(self) -> int:
        """Where the history begins."""
        segments = self._parts.history.opened.segments
        return segments[0].first if segments else 0

    def _forget_base(self) -> None:
        parts = self._parts
        parts.sum_base.begin_anew(self._first, imageless_upto(parts.history.opened.segments))
        parts.sums.forget()

    def _say_oldest_lost(self) -> None:
        """Retention takes the oldest segments, once their sums are in the base. Where they are not
        there the segments were lost; which points with them, only the catalog can say."""
        parts = self._parts
        segments = parts.history.segment_set.sealed
        if not segments or parts.sum_base.reaches(segments[0].first):
            return
        there = parts.points.all
        oldest = there[0].sequence if there else parts.intake.front.state.next_point
        lost: list[int] = []
        parts.telling.index(lambda: lost.extend(parts.catalog.below(oldest)))
        if lost:
            parts.telling.event(
                "history.oldest_lost", points=f"#{lost[0]} to #{lost[-1]}", count=len(lost)
            )

    # -- judging

    def _seen_more(self, read: _Read) -> Evidence:
        parts, evidence = self._parts, read.evidence
        front = parts.intake.front.state
        seen = self._reached()
        beyond = (
            seen.point >= front.next_point
            or seen.generation > front.generation
            or seen.position > end_of(parts.history.opened.segments)
        )
        newer, applied = False, read.applied
        if evidence.line is Line.HELD:
            is_silent = (
                applied is not None and applied.number == parts.history.batch_list.last_end.number
            )
        else:
            is_silent = not evidence.is_empty
        if is_silent:
            newer = ahead.holds_newer(
                parts.history, parts.sums, parts.replica, parts.inbox, read.state
            )
        return replace(evidence, seen_beyond=beyond, holds_newer=newer)

    def _reached(self) -> Reached:
        parts, found = self._parts, [self._audit_reached()]
        parts.telling.index(lambda: found.append(parts.catalog.reached()))
        return found[0] if len(found) == 1 else found[0].with_more(found[1])

    def _stop_for(self, verdict: Verdict) -> None:
        """Raises DamageError where it says so."""
        if not verdict.stops:
            return
        self.stopped = verdict
        group = self._parts.telling.group
        told = "; ".join(self._told(each) for each in verdict.stops)
        ways = list(dict.fromkeys(each.put_back for each in verdict.stops))
        hint = "; ".join(ways)
        if all(each.acceptable for each in verdict.stops):
            hint += (
                f"; if it is lost, `replicator history accept {group} --reason TEXT` goes on with"
                " what can be proven"
            )
        raise DamageError(f"group {group!r}: {told}", hint=hint)

    def _told(self, finding: Finding) -> str:
        parts, name = self._parts, finding.what
        if not name:
            return finding.prose
        if finding.label == "tail was whole":
            return name
        if not finding.label.startswith("image"):
            return f"{parts.directory / name} {finding.prose}"
        path = parts.replica.path(name)
        if finding.label == "image of another size":
            found = parts.replica.size_of(name)
            return f"{path}: has {found} bytes, {finding.prose} {self._sizes[name]}"
        return f"{path}: the replica of disk {name!r} {finding.prose}"

    # -- going on

    def _mend(self, verdict: Verdict) -> Mending:
        mending, seen = Mending(), self._reached()
        vouched = self._slots.durable
        mending.next_point = max(seen.point + 1, vouched.next_point if vouched is not None else 0)
        mending.ordinal = self._given_up[0]
        mending.next_point = max(mending.next_point, self._given_up[1])
        mending.generation = max(seen.generation, vouched.generation if vouched is not None else 0)
        for finding in verdict.of(Action.MEND):
            mending.reasons.append(finding.prose)
        return mending

    def _doubt(self, read: _Read, verdict: Verdict) -> set[str]:
        """Which images are read back before they are believed."""
        disks, parts = read.state.disks, self._parts
        states = read.evidence.images
        exchanged = {name for name in disks if states[name] is ImageState.EXCHANGED}
        if verdict.has("vouched for anew"):
            exchanged = set(disks)
        unverified = exchanged | self._strangers(read) | self._later(read, verdict)
        self._voucher.start(unverified)
        if unverified:
            parts.scrub.start_over()
            parts.telling.event("replica.unverified", disks=", ".join(sorted(unverified)))
        return unverified

    def _is_unproven(self, read: _Read, names: set[str]) -> bool:
        """Where sums are gone of what the history let go of, be it long ago, reading an image back
        proves it only in part. So all of it is damage, and what has a sum, or is the same at the
        source, is acquitted."""
        if not names or self._parts.sums.is_whole:
            return False
        disks = [disk for disk in read.state.disks.values() if disk.name in names]
        damage = compare.whole_disks(disks, 0)
        self._damaged(lambda known: rules.added(known, damage))
        return True

    def _strangers(self, read: _Read) -> set[str]:
        """Images that lack some of what was written last: rot, or an older one in its file."""
        parts, applied = self._parts, read.applied
        if applied is None or read.evidence.line is not Line.HELD:
            return set()
        disks = list(read.state.disks.values())
        on_record = rules.added(parts.applier.applied.damage, parts.applier.newest_state.damage)
        found = compare.lately(parts.history, applied.number, on_record)
        wrong = found.keys[compare.wrong_of(found, parts.replica, disks)]
        return {disk.name for disk in disks if compare.is_of(disk, wrong).any()}

    def _later(self, read: _Read, verdict: Verdict) -> set[str]:
        """Images that may hold what comes behind the history's end. Where a batch behind it was
        begun, it may be in them, unless all of the log that it takes is there and has not come to
        them. Where none was, somebody else wrote to them, if one was written since; and if
        something else was set back, nothing may have changed them."""
        parts, applied = self._parts, read.applied
        if applied is None or applied.number != parts.history.batch_list.last_end.number:
            return set()
        disks = set(read.state.disks)
        if not applied.is_resting:
            upto = applied.begun
            is_there = ahead.has_not_come(parts.sums, parts.replica, parts.inbox, read.state, upto)
            return set() if is_there else disks
        is_set_back = verdict.has("set back") or (
            read.evidence.inbox in (InboxState.MISSING, InboxState.OLDER)
        )
        looks = looking.was_changed if is_set_back else looking.was_written
        return {name for name in disks if looks(parts.replica, applied, name)}

    def _begun_upto(self, read: _Read) -> Upto:
        """How far the batch takes the log that is begun and not applied, if one is."""
        unapplied = self._parts.history.batch_list.unapplied
        if unapplied is None or unapplied.kind != "log":
            return NOT_OF_THE_LOG
        return read.state.ordinal, read.state.lsn

    def _compare(self, read: _Read) -> bool:
        """Whether something is left that is not what the history says."""
        parts = self._parts
        state = parts.applier.applied
        disks = list(state.disks.values())
        if parts.history.batch_list.unapplied is not None:
            compare.undo_torn(
                parts.history.batch_list.unapplied, parts.history, parts.replica, disks
            )
        if read.applied is None or read.applied.number >= parts.history.batch_list.last_end.number:
            return False
        number = compare.written_behind(read.applied, parts.history)
        found = None
        if parts.sum_base.upto <= read.applied.number:
            found = compare.suspects(parts.history, number)
        if found is None:
            entire = compare.whole_disks(disks, number + 1)
            self._damaged(partial(rules.added, more=entire))
            self._voucher.start({disk.name for disk in disks})
            parts.scrub.start_over()
            return True
        wrong = compare.wrong_of(found, parts.replica, disks)
        if parts.history.batch_list.unapplied is not None:
            again = parts.history.reader.table(parts.history.batch_list.unapplied).keys()[0]
            wrong &= ~np.isin(found.keys, again)
        keys, sums, writers = found.keys[wrong], found.sums[wrong], found.writers[wrong]
        if not len(keys):
            return False
        before = state.damage
        self._damaged(partial(rules.added, more=compare.damage_of(keys, writers)))
        healed = np.zeros(len(keys), dtype=np.bool_)
        for disk in disks:
            mine = compare.is_of(disk, keys)
            healed[mine] = parts.healer.heal_replica(disk, keys[mine], sums[mine])
        self._damaged(partial(rules.healed, keys=keys[healed], replaced=0))
        parts.telling.event(
            "replica.older", blocks=len(keys), healed=int(healed.sum()), behind=number
        )
        if parts.applier.applied.damage == before:
            self._voucher.recorded()
        return not healed.all()

    def _damaged(self, change: Callable[[rules.Damage], rules.Damage]) -> None:
        """In memory; the next batch puts it on record, and a crash before that finds it again. A
        batch that is begun and not applied may have put more on record than what is in front of
        it: that stays."""
        self._voucher.hold_back()
        applied, newest = self._parts.applier.applied, self._parts.applier.newest_state
        if newest is not applied:
            newest.damage = change(newest.damage)
        applied.damage = change(applied.damage)

    # -- mending

    def _begin_mending(self, mending: Mending) -> None:
        parts = self._parts
        if mending.reasons:
            self._mending = mending
            parts.intake.mending = True
            parts.telling.event("group.mended", why="; ".join(mending.reasons))
        else:
            self._mending = None
            parts.telling.index(self.rebuild_catalog)

    def settle(self) -> bool:
        """There is nothing left to be applied. Whether something was put on record. Raises
        OSError."""
        parts = self._parts
        if self._mending is not None:
            state = self._mending.put_on_record(parts.applier, parts.intake, parts.inbox)
            parts.intake.mending = False
            self._mending = None
            parts.telling.event("group.goes_on", next_point=state.next_point)
            parts.telling.index(self.rebuild_catalog)
            return True
        self._voucher.rest(parts.applier.applied)
        return False

    def read_back(self, disk: str) -> None:
        """A scrub that an opening began has read all of the disk's image; what it found is on
        record. Raises OSError."""
        self._believe({disk})

    def scrubbed(self) -> None:
        """A whole scrub has ended; what it found is on record. Raises OSError."""
        self._believe(self._voucher.unverified)

    def _believe(self, disks: Collection[str]) -> None:
        if not self._voucher.unverified.isdisjoint(disks):
            self._voucher.verified(disks)
            self._parts.telling.event("replica.verified", disks=", ".join(sorted(disks)))
            self._voucher.rest(self._parts.applier.applied)

    def rebuild_catalog(self) -> None:
        parts = self._parts
        parts.catalog.rebuild(
            parts.points.all,
            segment_facts(parts.history),
            parts.intake.front.state.generation,
        )

    # -- accepting

    def accept(self, progress: Progress = ignore_progress) -> None:
        """Goes on without what an opening stopped for. Raises UsageError where it did not stop, or
        where that cannot be gone on without; DamageError, OSError."""
        read = self._read()
        stops = judge(read.evidence).stops
        if not stops:
            self._use(read)
            stops = judge(self._seen_more(read)).stops
            read = self._read()
        self._check_acceptable(stops)
        parts = self._parts
        stand_ins = self._stand_in(read)
        parts.history.accept_tail()
        parts.applier.start(read.before, read.state)
        announced = self._announced(read)
        parts.points.reset(
            mended(parts.history.batch_list.points(), parts.applier.newest_state.mends)
        )
        parts.applier.take_as_applied()
        parts.intake.front.reset(parts.applier.applied.copy())
        if read.evidence.sums_beyond:
            parts.sum_base.give_up()
        if read.applied is None:
            self._forget_base()
        else:
            self._mend_sums(read)
            parts.sums.forget()
        mending = self._mend(judge(read.evidence))
        mending.next_point = max(mending.next_point, announced)
        mending.generation = max(mending.generation, parts.applier.applied.generation) + 1
        mending.fences = True
        self._voucher.start(())
        damage = self._unproven(read, stops, progress)
        self._damaged(partial(rules.added, more=damage))
        mending.put_on_record(parts.applier, parts.intake, parts.inbox)
        for name in stand_ins:
            parts.replica.put_in_place(name)
        self._voucher.state(parts.applier.applied)
        parts.telling.event(
            "history.accepted", why="; ".join(each.prose for each in stops), damaged=len(damage)
        )
        self.stopped = Verdict(())
        self._begin_mending(Mending())

    def _announced(self, read: _Read) -> int:
        """The next number behind the points in the inbox, which is given up."""
        intake = self._parts.intake
        self._parts.inbox.remove_closed(read.state.closed_ordinal)
        if read.evidence.inbox is InboxState.FITS:
            intake.start(read.state)
            return intake.front.state.next_point
        return read.state.next_point

    def _unproven(self, read: _Read, stops: list[Finding], progress: Progress) -> rules.Damage:
        """What of the replica is not proven to be what the history says."""
        parts, applied = self._parts, read.applied
        every = list(parts.applier.applied.disks.values())
        disks = every
        damage: rules.Damage = ()
        if all(each.label in _REPLICA_IS_RIGHT for each in stops) and applied is not None:
            number = compare.written_behind(applied, parts.history)
            found = compare.suspects(parts.history, number)
            if found is not None and parts.sum_base.upto <= applied.number:
                wrong = compare.wrong_of(found, parts.replica, every)
                damage = tuple(compare.damage_of(found.keys[wrong], found.writers[wrong]))
                missing = {each.what for each in stops}
                disks = [disk for disk in every if disk.name in missing]
        return rules.added(damage, compare.entire(parts.sums, parts.replica, disks, progress))

    def _check_acceptable(self, stops: list[Finding]) -> None:
        group = self._parts.telling.group
        if not stops:
            raise UsageError(
                f"group {group!r} is not stopped for what lies beside what: there is nothing to"
                " accept"
            )
        for each in stops:
            if not each.acceptable:
                raise UsageError(f"group {group!r}: {self._told(each)}", hint=each.put_back)

    def _stand_in(self, read: _Read) -> list[str]:
        """Zeroes for the images that are missing or of another size."""
        states = read.evidence.images
        names = [
            name
            for name in sorted(states)
            if states[name] in (ImageState.MISSING, ImageState.OTHER_SIZE)
        ]
        for name in names:
            self._parts.replica.stand_in(name, read.state.disks[name].size_bytes)
        return names
