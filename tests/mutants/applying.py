# SPDX-License-Identifier: Apache-2.0
"""The receiver's apply, recovery, rollback and retention: what an inattentive change would do to
them. Each was once a hole in a model of the design, or is what random lives must notice."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_LIVES = ("tests/receiver/test_machine.py::test_random_lives",)
_TELLING = ("tests/receiver/test_machine.py::test_lives_that_tell_of_a_rule",)

MUTANTS = (
    Mutant(
        "a rollback to a single write is still one after a crash",
        "receiver/rollback/rollback.py",
        "            return cls.to(history, intent.target, "
        "overlay_of(batch.point, intent.writes))\n",
        "            pass\n",
        _LIVES,
    ),
    Mutant(
        "frames stay while a rollback needs them",
        "receiver/writes/log.py",
        "        if self.keep_ns == 0:\n            return False",
        "        if not self.keep_ns:\n            return False",
        _LIVES,
    ),
    Mutant(
        "what a view reads is not rewritten under it",
        "receiver/retention/reclaim.py",
        "        return min([*begins, self._history.segment_set.newest_first])",
        "        return self._history.segment_set.newest_first",
        ("tests/receiver/test_reclaim.py", "tests/receiver/test_scrub.py"),
    ),
    Mutant(
        "no segment goes that a kept point needs",
        "receiver/retention/reclaim.py",
        "        count += 1\n    return count\n",
        "        count += 1\n    return min(len(segments), count + 1)\n",
        _LIVES,
    ),
    Mutant(
        "batches on both sides of a kept point stay two",
        "receiver/history/merging.py",
        "        if batch.point is not None and batch.point.sequence in kept:\n            groups",
        "        if batch.point is not None and batch.point.sequence in sorted(kept)[::2]:\n"
        "            groups",
        ("tests/receiver/test_merging.py", "tests/receiver/test_reclaim.py"),
    ),
    Mutant(
        "what an opening reports is synced first",
        "receiver/group/group.py",
        "        self.opening.run()\n",
        "        from unittest import mock\n"
        "        from tests.world.storage import SimFile, SimStorage\n"
        "        unsynced = mock.patch.multiple(SimFile, datasync=lambda _file: None)\n"
        "        nameless = mock.patch.multiple(SimStorage, sync_directory=lambda *_: None)\n"
        "        with unsynced, nameless:\n"
        "            self.opening.run()\n",
        _LIVES,
    ),
    Mutant(
        "a batch that is done again has the limits that it was begun with",
        "receiver/apply/redo.py",
        "            if frame.start_lsn >= batch.end_lsn:\n"
        "                break\n"
        "            for unit in units_of(self._inbox.read(batch.ordinal, frame), "
        "batch.start_lsn):\n"
        "                if unit.end_lsn > batch.end_lsn:\n"
        "                    break\n"
        "                builder.feed(unit)\n"
        "                self._create(builder.created)\n"
        "        if state.lsn != batch.end_lsn:",
        "            for unit in units_of(self._inbox.read(batch.ordinal, frame), state.lsn):\n"
        "                builder.feed(unit)\n"
        "                self._create(builder.created)\n"
        "        if state.lsn < batch.end_lsn:",
        _LIVES,
    ),
    Mutant(
        "before-images are in the history before the replica is written",
        "receiver/apply/applier.py",
        "        batch = self._history.append(draft, self.applied)\n",
        "        for change in changes:\n"
        "            write_changes(self._replica.file(change.name), change.writes)\n"
        "        batch = self._history.append(draft, self.applied)\n",
        _LIVES,
    ),
    Mutant(
        "before-images are durable before the replica is written",
        "receiver/history/log.py",
        "        self.log.sync()\n        self._applied_at",
        "        self.log.durable_end = self.log.end\n        self._applied_at",
        _LIVES,
    ),
    Mutant(
        "nothing is applied that the replica has in its cache alone",
        "receiver/blocks/replica.py",
        "            self.file(name).datasync()\n",
        "            self.file(name)\n",
        _LIVES,
    ),
    Mutant(
        "the inbox goes when a batch is applied, not when it is begun",
        "receiver/apply/applier.py",
        "        batch = self._history.append(draft, self.applied)\n",
        "        self._inbox.free(state.ordinal, state.lsn)\n"
        "        batch = self._history.append(draft, self.applied)\n",
        _LIVES,
    ),
    Mutant(
        "what is acknowledged is synced",
        "receiver/intake/inbox.py",
        "        self._log.sync()\n        with self._lock:\n",
        "        with self._lock:\n",
        _LIVES,
    ),
    Mutant(
        "waiting zeroes outlive a restart",
        "receiver/history/state.py",
        "                    pending,\n                    disk.is_made_here,\n",
        "                    ExtentSet(),\n                    disk.is_made_here,\n",
        _TELLING,
    ),
    Mutant(
        "what the source calls the same is no zero any more",
        "receiver/apply/batch.py",
        "            disk.pending.remove(start, start + length)\n"
        "            zeroes.clear(start, start + length)\n",
        "            if record.type != _SAME:\n"
        "                disk.pending.remove(start, start + length)\n"
        "                zeroes.clear(start, start + length)\n",
        _LIVES,
    ),
    Mutant(
        "waiting zeroes become content at the sync's end",
        "receiver/apply/batch.py",
        "            self._settle(lsn, record)\n",
        "            pass\n",
        _LIVES,
    ),
    Mutant(
        "zeroes of a sync wait for its end",
        "receiver/apply/batch.py",
        "                zeroes.added.add(start, start + length)\n",
        "                zeroes.added.add(start, start + length)\n"
        "                self._operate(disk, Operation(start, length, None))\n",
        _LIVES,
    ),
    Mutant(
        "what came before a rollback is applied before it",
        "receiver/group/rolling_back.py",
        "            while self._step():\n"
        "                pass\n"
        "            target = self._showing.applied_point(sequence)\n",
        "            while not self._applier.is_point_applied(sequence) and self._step():\n"
        "                pass\n"
        "            target = self._showing.applied_point(sequence)\n",
        _LIVES,
    ),
    Mutant(
        "a rollback closes the stream",
        "receiver/history/state.py",
        "        self.closed_ordinal = max(self.closed_ordinal, self.ordinal)\n",
        "        self.closed_ordinal = 0\n        return\n",
        _LIVES,
    ),
    Mutant(
        "a rollback goes on after a crash",
        "receiver/history/state.py",
        "            rollback=body.rollback,\n",
        "            rollback=None,\n",
        _TELLING,
    ),
    Mutant(
        "sectors of one block that are written apart are all written",
        "receiver/blocks/content.py",
        "    forced = _blocks_of(slot, always)\n",
        "    kept: list[Operation] = []\n"
        "    seen: set[int] = set()\n"
        "    for each in reversed(operations):\n"
        "        end = -(-(each.offset + each.length) // BLOCK_BYTES)\n"
        "        blocks = set(range(each.offset // BLOCK_BYTES, end))\n"
        "        if not blocks <= seen:\n"
        "            kept.append(each)\n"
        "        seen |= blocks\n"
        "    operations = kept[::-1]\n"
        "    forced = _blocks_of(slot, always)\n",
        _LIVES,
    ),
    Mutant(
        "of a block's images the earliest behind the point counts",
        "receiver/history/index/runs.py",
        "    parts = [part for part in parts if len(part)]\n",
        "    parts = [part for part in parts[::-1] if len(part)]\n",
        _LIVES,
    ),
    Mutant(
        "a batch that is done again writes blocks that look right as well",
        "receiver/apply/applier.py",
        "        changes = self._changes(\n"
        "            state, operations, always=self._history.reader.table(batch).keys()[0]\n"
        "        )\n",
        "        changes = self._changes(state, operations)\n",
        ("tests/receiver/test_apply.py",),
    ),
    Mutant(
        "no point has a member whose sync has not ended",
        "receiver/history/state.py",
        "        if not body.members or not all(member.complete for member in body.members):\n"
        "            return None\n"
        "        members: list[PointDisk] = []\n"
        "        for member in body.members:\n"
        "            disk = self.by_index.get(member.disk)\n"
        "            if disk is None or (disk.source_name, disk.instance) != "
        "(member.name, member.instance):\n"
        "                raise UsageError("
        'f"{record}: member {member.name!r} is no disk of the stream")\n'
        "            if disk.syncing or not disk.complete:\n"
        "                return None\n",
        "        members: list[PointDisk] = []\n"
        "        for member in body.members:\n"
        "            disk = self.by_index.get(member.disk)\n"
        "            assert disk is not None\n",
        _LIVES,
    ),
    Mutant(
        "points of the inbox have their numbers after a restart",
        "receiver/intake/intake.py",
        "        front = Front(state.copy())\n        while True:\n",
        "        front = Front(state.copy())\n        while False:\n",
        _LIVES,
    ),
    Mutant(
        "of points that take several records all go, or none",
        "receiver/history/log.py",
        "                self.log.cut_back()  # of many records some may be there\n",
        "                pass\n",
        ("tests/receiver/test_dropping.py::test_of_many_points_all_go_or_none",),
    ),
    Mutant(
        "points that were given up stay so after a restart",
        "receiver/history/log.py",
        "            self._writer.append_dropped(sequences)\n",
        "            pass\n",
        _LIVES,
    ),
    Mutant(
        "the lock on record outlives a restart",
        "receiver/history/state.py",
        "            lock_ns=body.lock_ns,\n",
        "            lock_ns=0,\n",
        ("tests/receiver/test_keeping.py",),
    ),
    Mutant(
        "the lock on record holds where the configuration has a shorter one",
        "receiver/retention/keeping.py",
        "            max(self.lock_ns, policy.min_lock_ns),\n        )\n",
        "            policy.min_lock_ns,\n        )\n",
        ("tests/receiver/test_keeping.py",),
    ),
    Mutant(
        "when a point came is on record",
        "receiver/history/batches.py",
        "        point.received_ns,\n        point.expire_ns,\n",
        "        0,\n        point.expire_ns,\n",
        _LIVES,
    ),
)
