# SPDX-License-Identifier: Apache-2.0
"""The receiver: intake, opening, thinning, clock, the seat. (Those of apply, recovery and rollback
are in tests.mutants.applying.)"""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_SESSION = ("tests/receiver_service/test_session.py", "tests/receiver/test_apply.py")
_INBOX = ("tests/receiver/test_inbox.py", "tests/receiver/test_apply.py")
_THINNING = ("tests/receiver/test_thinning.py",)
_SUMMARIES = (
    "tests/receiver/test_summaries.py",
    "tests/receiver/test_summaries_in_doubt.py",
)
_COUNTED = ("tests/receiver/test_counted.py",)
_AGEING = ("tests/receiver/test_ageing.py",)
_RESERVE = ("tests/receiver/test_reserve.py",)
_SEAT = ("tests/receiver_service/test_seat.py",)

_RESTORE = "tests/receiver/test_restore_resume.py"
_SCRUB = "tests/receiver/test_scrub.py"
_FITTING = ("tests/receiver/test_fitting.py",)

MUTANTS = (
    Mutant(
        "an inbox that was cut back goes on with its own chain",
        "receiver/intake/inbox.py",
        "            stream.received_lsn, stream.chain = stream.durable_lsn, stream.durable_chain",
        "            stream.received_lsn = stream.durable_lsn",
        ("tests/receiver/test_inbox.py",),
    ),
    Mutant(
        "a closed stream is closed after a restart",
        "receiver/history/state.py",
        "            closed_ordinal=body.closed_ordinal,\n",
        "",
        ("tests/receiver/test_rollback.py",),
    ),
    Mutant(
        "frames of a closed stream go at an opening",
        "receiver/opening/opening.py",
        "        self._parts.inbox.remove_closed(read.state.closed_ordinal)\n",
        "",
        (f"{_FITTING[0]}::test_history_older_accepted_with_a_crash_before_every_call",),
    ),
    Mutant(
        "a restore cuts off what lies behind its finished pieces",
        "receiver/restore/image.py",
        "        self._file.truncate(min(len(noted) * self._piece, self._size))\n",
        "",
        (f"{_RESTORE}::test_what_lies_behind_the_finished_pieces_is_cut_off",),
    ),
    Mutant(
        "an inbox without what comes next is a stop",
        "receiver/fitting/looking.py",
        "    if found.name.stream != state.stream or _first_lsn(found) > state.lsn:",
        "    if found.name.stream != state.stream:",
        (f"{_FITTING[0]}::test_inbox_newer_than_the_rest",),
    ),
    Mutant(
        "what a write heals, and no more, goes off the record",
        "receiver/damage/healing.py",
        "                damage = rules.healed(damage, keys[fits], replaced=0)",
        "                damage = rules.healed(damage, keys, replaced=0)",
        (f"{_SCRUB}::test_a_sync_that_heals_one_block_leaves_the_others_on_record",),
    ),
    Mutant(
        "a history that ends before what the replica holds is a stop",
        "receiver/fitting/looking.py",
        "    if applied.number > history.batch_list.last_end.number:",
        "    if applied.number < 0:",
        (f"{_FITTING[0]}::test_history_older",),
    ),
    Mutant(
        "what the replica wrote behind its statement is compared",
        "receiver/opening/opening.py",
        "        if self._compare(read):\n",
        "        if False:\n",
        (f"{_FITTING[0]}::test_replica_older",),
    ),
    Mutant(
        "the replica is vouched for before it is overwritten",
        "receiver/apply/applier.py",
        "            self._voucher.ensure()\n",
        "",
        ("tests/receiver/test_voucher.py",),
    ),
    Mutant(
        "numbers go on above all that were ever given",
        "receiver/opening/mending.py",
        "        state.next_point = max(state.next_point, self.next_point)\n",
        "",
        (f"{_FITTING[0]}::test_the_whole_group_older_goes_on_above_all_numbers",),
    ),
    Mutant(
        "a stream begins with a sync",
        "receiver/intake/front.py",
        "    if record.type != RecordType.SYNC_BEGIN:",
        "    if record.type == RecordType.DETACH:",
        (*_SESSION, "tests/receiver/test_points.py"),
    ),
    Mutant(
        "a resume at another chain is refused",
        "receiver/intake/intake.py",
        "        if chain != stream.durable_chain:",
        "        if chain < 0:",
        (*_SESSION, *_INBOX),
    ),
    Mutant(
        "a stream of a lower ordinal stays closed",
        "receiver/intake/intake.py",
        "            if ordinal <= max(state.ordinal, state.closed_ordinal):",
        "            if ordinal <= state.closed_ordinal:",
        (*_SESSION, *_INBOX, "tests/receiver/test_rollback.py"),
    ),
    Mutant(
        "a frame continues the one before",
        "receiver/intake/intake.py",
        "if header.start_lsn != stream.received_lsn or header.chain_start != stream.chain:",
        "if header.start_lsn != stream.received_lsn:",
        ("tests/receiver/test_points.py",),
    ),
    Mutant(
        "the newest point is never thinned",
        "receiver/retention/thinning.py",
        "    for point in points[:-1]:\n        moment_ns = end_ns(point)",
        "    for point in points:\n        moment_ns = end_ns(point)",
        _THINNING,
    ),
    Mutant(
        "what is younger than the lock is never thinned",
        "receiver/retention/thinning.py",
        "        if moment_ns <= protection.spared_after_ns:",
        "        if True:",
        _THINNING,
    ),
    Mutant(
        "a bucket keeps its oldest point",
        "receiver/retention/thinning.py",
        "    bucket = point.is_restamped, moment_ns // rule.step_ns",
        "    bucket = point.is_restamped, (moment_ns + rule.step_ns // 2) // rule.step_ns",
        _THINNING,
    ),
    Mutant(
        "a label keeps its point until its expiry",
        "receiver/retention/thinning.py",
        "        if point.sequence in protection.pinned or is_promised(point, now_ns):",
        "        if point.sequence in protection.pinned:",
        _THINNING,
    ),
    Mutant(
        "all that is too old goes in one pass",
        "receiver/retention/budget.py",
        "        sequences = [point.sequence for point in gone]\n",
        "        sequences = [point.sequence for point in gone[:4096]]\n",
        ("tests/receiver/test_retention.py",),
    ),
    Mutant(
        "of a quiet guest no more than some headers are to be read after a start",
        "receiver/history/sums/layers.py",
        "if self._recent.count >= self._rows_max or upto - known >= BATCHES_MAX:",
        "if self._recent.count >= self._rows_max:",
        ("tests/receiver/test_sums.py",),
    ),
    Mutant(
        "a summary is that of the segment that lies there",
        "receiver/history/summary.py",
        "        or SegmentIdentity(first, end, digest) != identity\n",
        "",
        _SUMMARIES,
    ),
    Mutant(
        "a summary is whole, or none",
        "receiver/history/summary.py",
        "        or xxh3_64_intdigest(body) != body_sum\n",
        "",
        _SUMMARIES,
    ),
    Mutant(
        "a summary goes by the digest of the segment's own seal",
        "receiver/history/opening.py",
        "            seal_digest=digest,\n",
        "            seal_digest=digest if stands is None else stands.digest,\n",
        _SUMMARIES,
    ),
    Mutant(
        "a segment whose summary was believed is gone through behind the opening",
        "receiver/history/summaries.py",
        "            if digest in self._believed or self._path(digest).name not in there\n",
        "            if self._path(digest).name not in there\n",
        _SUMMARIES,
    ),
    Mutant(
        "a summary that says otherwise than its segment stops the group",
        "receiver/history/summaries.py",
        "        elif found == work.wanted:\n",
        "        elif found is not None:\n",
        _SUMMARIES,
    ),
    Mutant(
        "a summary that cannot be told whole is not put down",
        "receiver/history/summaries.py",
        "        if parse(data, identity) != summary:\n",
        "        if False:\n",
        _SUMMARIES,
    ),
    Mutant(
        "a summary knows what the segment gives up",
        "receiver/history/units.py",
        "        frozenset(contents.dropped),\n",
        "        frozenset(),\n",
        _SUMMARIES,
    ),
    Mutant(
        "the state of the last segment is read, though its summary is believed",
        "receiver/history/opening.py",
        "    if opened.contents is None and opened.segments:",
        "    if False:",
        _SUMMARIES,
    ),
    Mutant(
        "a page of points costs what it shows",
        "receiver/orders/points.py",
        "await _told(worker, found[start:end])",
        "(await _told(worker, found))[start:end]",
        ("tests/receiver_service/test_point_pages.py",),
    ),
    Mutant(
        "another agent is refused while one feeds the group",
        "receiver/group/seat.py",
        "        if old.instance != sitter.instance:",
        "        if not old.instance:",
        _SEAT,
    ),
    Mutant(
        "the old session has let go before the new one is answered",
        "receiver/group/seat.py",
        "        self.fenced += 1\n        await old.fence()\n",
        "        self.fenced += 1\n",
        _SEAT,
    ),
    Mutant(
        "a jump of the wall clock moves nothing",
        "receiver/counted/rules.py",
        "        most_ns = passed_ns // SLEW if abs(off_ns) <= TOLERANCE_NS else 0",
        "        most_ns = abs(off_ns)",
        (*_COUNTED, *_AGEING),
    ),
    Mutant(
        "the clock never goes back",
        "receiver/counted/rules.py",
        "        now_ns = max(slow_ns, min(reading.wall_ns, straight_ns))",
        "        now_ns = min(reading.wall_ns, straight_ns)",
        _COUNTED,
    ),
    Mutant(
        "after a boot the wall clock is not believed",
        "receiver/counted/rules.py",
        "    return kept.boot == boot and boottime_ns >= kept.boottime_ns",
        "    return True",
        _COUNTED,
    ),
    Mutant(
        "what was slow before a restart was slow up to it",
        "receiver/counted/rules.py",
        "    return kept.counted_ns + (_slow(passed_ns) if kept.is_slow else passed_ns)",
        "    return kept.counted_ns + passed_ns",
        ("tests/receiver/test_counted_clock.py", *_COUNTED),
    ),
    Mutant(
        "what was stamped while the clock lagged does not age by the jump",
        "receiver/counted/rules.py",
        "    lag = Lag(_since_ns(counted), by_ns, now_ns)",
        "    lag = Lag(now_ns, by_ns, now_ns)",
        _AGEING,
    ),
    Mutant(
        "a jump ripens in the time of a good clock",
        "receiver/counted/rules.py",
        '    return judged if judged.state == "good" else _ripening_later(judged, moved_ns)',
        "    return judged",
        _COUNTED,
    ),
    Mutant(
        "the lock does not believe the agents",
        "receiver/counted/ages.py",
        "        for jump in reversed(self.jumps):",
        "        for jump in ():",
        (*_COUNTED, *_AGEING),
    ),
    Mutant(
        "deletion believes the agents ten minutes later",
        "receiver/counted/ages.py",
        "if self.counted_ns < each.ripe_ns)",
        "if False)",
        (*_COUNTED, *_AGEING),
    ),
    Mutant(
        "all agents who can tell must agree",
        "receiver/counted/witness.py",
        "    if any(each.off_ns(wall_ns, monotonic_ns) > AGREEMENT_NS for each in steady):",
        "    if all(each.off_ns(wall_ns, monotonic_ns) > AGREEMENT_NS for each in steady):",
        ("tests/receiver/test_counted_witness.py",),
    ),
    Mutant(
        "stamps ahead of the clock are mended on record",
        "receiver/retention/keeping.py",
        "            self._applier.state_mends(self._mends)",
        "            pass",
        _AGEING,
    ),
    Mutant(
        "points that share a mended stamp keep their order",
        "receiver/retention/thinning.py",
        "    moment_ns = point.until_ns if point.is_restamped else end_ns(point)",
        "    moment_ns = end_ns(point)",
        _AGEING,
    ),
    Mutant(
        "a source cannot make its points younger than the clock counts",
        "receiver/points/points.py",
        "min(until_ns - last.time_ns, counted_ns))",
        "until_ns - last.time_ns)",
        _AGEING,
    ),
    Mutant(
        "a full disk gives the reserve back for making room",
        "receiver/data_dir/reserve.py",
        "            if not is_full(error) or not self.give(what):",
        "            if True:",
        _RESERVE,
    ),
    Mutant(
        "nothing is taken in while the reserve is given back",
        "receiver/group/feeding.py",
        "        self._lanes.room.check()\n        accepted: list[Frame] = []",
        "        accepted: list[Frame] = []",
        ("tests/receiver_service/test_reserve.py",),
    ),
    Mutant(
        "the reserve is made where four times as much is free",
        "receiver/data_dir/reserve.py",
        "or self._free_bytes < FREE_TIMES * size:",
        "or self._free_bytes < size:",
        _RESERVE,
    ),
)
