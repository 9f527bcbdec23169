# SPDX-License-Identifier: Apache-2.0
"""The parts of a group, and how they are put together: each knows those below it.

    storage ─ history ─ sums ─ images ─ healing ─ applying ─ keeping ─ scrub ─ opening
                    inbox ─ intake ────┘            points, telling, catalog: for all of them

Where a part below has to tell one above, it is given that one's method.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from receiver.apply.applier import Applier
from receiver.apply.batch import BATCH_BYTES
from receiver.blocks.replica import Replica
from receiver.catalog import GroupCatalog
from receiver.counted.ages import AgeClock
from receiver.damage.healing import Healer
from receiver.damage.old_content import OldContent
from receiver.fitting.applied import NAME as SLOTS_NAME
from receiver.fitting.applied import AppliedSlots
from receiver.fitting.voucher import Voucher
from receiver.group.showing import Showing
from receiver.history.log import HistoryLog
from receiver.history.merging import PART_BLOCKS
from receiver.history.sums.base import SumBase
from receiver.history.sums.layers import ROWS_MAX, SumLayers
from receiver.history.sums.sums import LatestSums
from receiver.intake.inbox import Inbox
from receiver.intake.intake import Intake
from receiver.opening.opening import Opening, Parts
from receiver.points.evidence import Reached
from receiver.points.points import PointList
from receiver.points.telling import Telling
from receiver.points.values import (
    GroupEvent,
)
from receiver.retention.budget import Retention
from receiver.retention.earlier_images import EarlierImages
from receiver.retention.keeping import Keeping
from receiver.retention.reclaim import Reclaim
from receiver.scrub.scrub import Scrub
from receiver.tasks.beside import Beside
from receiver.writes.history import FineHistory
from receiver.writes.log import FineLog, Span
from replicator.base.clock import Clock
from replicator.base.storage import Storage
from replicator.base.units import MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that do not change what is promised."""

    history_segment_bytes: int = 64 * MIB
    inbox_segment_bytes: int = 16 * MIB
    batch_bytes: int = BATCH_BYTES
    step_blocks: int = PART_BLOCKS
    """What one step of a compaction writes."""
    sum_rows: int = ROWS_MAX
    """Sums of blocks that changed last, in memory."""
    cache_bytes: int = 64 * MIB
    """Frames kept in memory between their coming and their being applied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupParts:
    """Made by `assemble`, once for each life of a group."""

    name: str
    storage: Storage
    clock: Clock
    age_clock: AgeClock
    catalog: GroupCatalog
    telling: Telling
    points: PointList
    history: HistoryLog
    sum_base: SumBase
    sums: LatestSums
    replica: Replica
    inbox: Inbox
    fine: FineHistory
    slots: AppliedSlots
    voucher: Voucher
    old_content: OldContent
    applier: Applier
    showing: Showing
    reclaim: Reclaim
    scrub: Scrub
    keeping: Keeping
    intake: Intake
    opening: Opening
    earlier_images: EarlierImages
    closing: ExitStack
    """Closes what has files open."""


def assemble(
    storage: Storage,
    clock: Clock,
    directory: Path,
    name: str,
    catalog: GroupCatalog,
    *,
    age_clock: AgeClock,
    notify: Callable[[GroupEvent], None],
    limits: Limits,
    fine_ns: int,
    reached: Callable[[], Reached],
    beside: Beside,
) -> GroupParts:
    """See GroupReplica."""
    telling = Telling(name, notify)
    points = PointList(lambda: age_clock.ages().counted_ns)
    history = HistoryLog(
        storage, directory / "history", name, clock.utc_ns, limits.history_segment_bytes
    )
    sum_base = SumBase(storage, directory / "sums")
    newest_sums = SumLayers(
        sum_base,
        SumBase(storage, directory / "sums" / "newest", in_steps=True),
        rows_max=limits.sum_rows,
    )
    past_sums = SumLayers(
        sum_base,
        SumBase(storage, directory / "sums" / "past"),
        rows_max=limits.sum_rows,
        is_cached=False,
    )

    def catch_up() -> None:
        """Sums of the newest batches are about to go to where they can no longer be told apart from
        older ones: so what the replica holds is stated first."""
        voucher.keep_up(applier.applied, is_pending=applier.has_pending)

    sums = LatestSums(
        history,
        sum_base,
        newest_sums,
        past_sums,
        lambda: telling.event("sums.given_up"),
        catch_up,
    )
    replica = Replica(storage, directory / "disks", telling.set_aside)
    fine_log = FineLog(
        storage,
        directory / "fine",
        age_clock,
        lambda ordinal: [Span(*each) for each in inbox.spans(ordinal)],
        fine_ns,
    )
    fine = FineHistory(
        fine_log,
        points,
        lambda freed_bytes, oldest_ns: telling.event(
            "fine_history.shrunk", freed_bytes=freed_bytes, oldest_ns=oldest_ns
        ),
    )
    inbox = Inbox(
        storage,
        directory / "inbox",
        name,
        clock.utc_ns,
        segment_bytes=limits.inbox_segment_bytes,
        cache_bytes=limits.cache_bytes,
        leave=fine_log.take,
    )
    slots = AppliedSlots(storage, replica.directory / SLOTS_NAME, beside)
    voucher = Voucher(slots, history, replica, sums)
    healer = Healer(
        storage,
        history,
        sums,
        replica,
        inbox,
        lambda: list(applier.applied.disks.values()),
        writes=fine_log,
    )
    old_content = OldContent(sums, replica, healer, telling)
    applier = Applier(
        history,
        replica,
        inbox,
        points,
        clock.utc_ns,
        age_clock,
        limits.batch_bytes,
        old_content,
        fine.overlay,
        voucher,
    )
    showing = Showing(
        name, history, replica, points, applier, fine=fine, unverified=lambda: opening.unverified
    )
    reclaim = Reclaim(
        storage,
        history,
        points,
        clock.utc_ns,
        telling.compaction_failed,
        sums,
        step_blocks=limits.step_blocks,
    )
    scrub = Scrub(
        storage,
        directory / "scrub.json",
        history,
        sums,
        replica,
        applier,
        healer,
        reclaim,
        showing.pins,
        telling,
        clock.utc_ns,
        lambda disk: opening.read_back(disk),  # noqa: PLW0108 - it is made below
        lambda: opening.scrubbed(),  # noqa: PLW0108
    )
    retention = Retention(reclaim, history, points, lambda: inbox.used_bytes + fine_log.used_bytes)
    keeping = Keeping(
        name, applier, history, points, retention, telling, catalog, showing.pins, age_clock
    )
    intake = Intake(name, inbox, points, catalog, telling, lambda: applier.is_rolling_back)
    opening = Opening(
        Parts(
            storage,
            directory,
            history,
            replica,
            inbox,
            fine_log,
            sum_base,
            SumBase(storage, directory / "sums" / "gathered"),
            sums,
            points,
            applier,
            intake,
            healer,
            scrub,
            telling,
            catalog,
        ),
        slots,
        voucher,
        reached,
    )
    closing = ExitStack()
    for part in (replica, beside, slots, past_sums, newest_sums, sum_base, history, inbox, reclaim):
        closing.callback(part.close)
    return GroupParts(
        name=name,
        storage=storage,
        clock=clock,
        age_clock=age_clock,
        catalog=catalog,
        telling=telling,
        points=points,
        history=history,
        sum_base=sum_base,
        sums=sums,
        replica=replica,
        inbox=inbox,
        fine=fine,
        slots=slots,
        voucher=voucher,
        old_content=old_content,
        applier=applier,
        showing=showing,
        reclaim=reclaim,
        scrub=scrub,
        keeping=keeping,
        intake=intake,
        opening=opening,
        earlier_images=EarlierImages(applier, history, replica, points, telling),
        closing=closing,
    )
