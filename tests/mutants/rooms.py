# SPDX-License-Identifier: Apache-2.0
"""What ends a daemon and what ends a group, what is left behind, and what clients may take."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_DAEMON = ("tests/base/test_daemon.py",)
_PUMP = ("tests/receiver_service/test_pump.py",)
_ROOMS = "tests/receiver_service/test_isolation.py"
_LEFT = "tests/receiver_service/test_leftovers.py"
_MEMORY = "tests/nbd/test_memory.py"

MUTANTS = (
    Mutant(
        "no signal ends a daemon by accident",
        "replicator/base/signals.py",
        "        for number in HEEDED | DROPPED:\n",
        "        for number in HEEDED:\n",
        _DAEMON,
    ),
    Mutant(
        "a reload that came during the start counts after it",
        "replicator/base/daemon.py",
        "        self._begin_reload()\n        try:\n",
        "        try:\n",
        _DAEMON,
    ),
    Mutant(
        "a reload that fails changes nothing",
        "replicator/base/daemon.py",
        '                _log.exception("reload failed")\n',
        "                self.stop.set()\n",
        _DAEMON,
    ),
    Mutant(
        "an end that was asked for early begins nothing",
        "replicator/base/daemon.py",
        "    if not daemon.stop.is_set():\n        await life(daemon)\n",
        "    await life(daemon)\n",
        _DAEMON,
    ),
    Mutant(
        "whatever comes out of a step stops its group",
        "receiver/tasks/pump.py",
        "            except Exception as error:  # noqa: BLE001 - a supervision: see",
        "            except ReplicatorError as error:  #",
        _PUMP,
    ),
    Mutant(
        "a reason is told in an error of its own",
        "receiver/tasks/stop.py",
        "            raise anew(self.reason)\n",
        "            raise self.reason\n",
        _PUMP,
    ),
    Mutant(
        "a failing disk under the inbox stops the group",
        "receiver/group/feeding.py",
        '            raise self._health.stop.because(error, "intake") from error\n',
        "            raise trouble from error\n",
        (f"{_ROOMS}::test_a_disk_that_fails_at_run_time_stops_its_group_alone",),
    ),
    Mutant(
        "recovery is supervised",
        "receiver/group/worker.py",
        "        except Exception as error:  # noqa: BLE001 - a supervision\n"
        "            if isinstance(error, DamageError):\n",
        "        except DamageError as error:\n            if isinstance(error, DamageError):\n",
        (f"{_ROOMS}::test_a_start_with_one_group_in_trouble",),
    ),
    Mutant(
        "a history that the audit cannot read stops its group",
        "receiver/orders/lookout.py",
        '            worker.health.stop.because(error, "audit look-up")\n',
        "            del error\n",
        (f"{_ROOMS}::test_a_history_that_the_audit_cannot_read_stops_its_group_alone",),
    ),
    Mutant(
        "a start does not wait for a silent disk",
        "receiver/service.py",
        "                await asyncio.wait([recovery], timeout=RECOVERY_PATIENCE_SECONDS)\n",
        "                await asyncio.wait([recovery], timeout=12)\n",
        (f"{_ROOMS}::test_a_disk_that_answers_late_does_not_keep_the_others_from_starting",),
    ),
    Mutant(
        "only what a view made is cleared",
        "receiver/views/open_views.py",
        '        if any(each.suffix != ".overlay" or not each.is_file() for each in found):\n',
        '        if any(each.suffix == ".overlay" for each in found):\n',
        (f"{_ROOMS}::test_a_start_with_one_group_in_trouble",),
    ),
    Mutant(
        "a timer that meets a fault loses its group",
        "agent/splitter/groups.py",
        "            self.group.lose_by(error)\n",
        "            del error\n",
        ("tests/splitter/test_isolation.py",),
    ),
    Mutant(
        "a batch that meets a fault loses its group before the connection ends",
        "agent/splitter/exports.py",
        "            self._group.lose_by(error)  # known, before the connection ends by it\n",
        "",
        ("tests/splitter/test_isolation.py",),
    ),
    Mutant(
        "a task of a group that dies is begun anew",
        "agent/retrying/supervision.py",
        "                self.failed(what, error)\n            else:\n",
        "                self.failed(what, error)\n                return\n            else:\n",
        ("tests/agent/test_supervision.py",),
    ),
    Mutant(
        "locked points refuse to be forgotten",
        "receiver/orders/leftovers.py",
        "        if request.break_lock:\n            return\n",
        "        return\n",
        (_LEFT,),
    ),
    Mutant(
        "the lock on record counts",
        "receiver/orders/leftovers.py",
        "ages.locked_after_ns(max(recorded_ns, self._min_lock_ns()))",
        "ages.locked_after_ns(self._min_lock_ns())",
        (_LEFT,),
    ),
    Mutant(
        "what the audit saw of a forgotten group counts no more",
        "receiver/audit/heads.py",
        "        entry.order == FORGET.audit\n",
        "        entry.order == FORGET.audit * 2\n",
        ("tests/receiver/test_audit_heads.py",),
    ),
    Mutant(
        "a forgotten group is gone in one step",
        "receiver/orders/leftovers.py",
        "        self._storage.replace(self._folder(group), target)\n",
        "        target = self._folder(group)\n",
        (_LEFT,),
    ),
    Mutant(
        "receive memory is bounded over all connections",
        "replicator/nbd/memory.py",
        "            if size > self._free_bytes:\n",
        "            if size > self._total_bytes:\n",
        (_MEMORY,),
    ),
    Mutant(
        "a request that fits own memory never waits",
        "replicator/nbd/memory.py",
        "        if size <= OWN_RECEIVE_BYTES or self._granted.get(member) == size:\n",
        "        if self._granted.get(member) == size:\n",
        (f"{_MEMORY}::test_a_request_that_fits_own_memory_never_waits",),
    ),
    Mutant(
        "visitors give way before sources",
        "replicator/nbd/memory.py",
        "                (not member.is_visitor, since, member)\n",
        "                (member.is_visitor, since, member)\n",
        (_MEMORY,),
    ),
    Mutant(
        "memory counts until nobody holds it",
        "replicator/nbd/memory.py",
        "        weakref.finalize(made, self._gone, size).atexit = False\n",
        "        self._gone(size)\n",
        (_MEMORY,),
    ),
    Mutant(
        "the handshake that was silent longest gives way",
        "replicator/nbd/server.py",
        "min(self._handshakes, key=lambda each: each.share.last_byte,",
        "max(self._handshakes, key=lambda each: each.share.last_byte,",
        ("tests/nbd/test_server.py::test_idle_peers_cannot_take_all_places",),
    ),
)
