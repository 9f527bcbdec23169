# SPDX-License-Identifier: Apache-2.0
"""The receiver: intake, views, thinning, the seat. (tests/receiver/test_mutants.py plants those of
apply and recovery in the random lives.)"""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_SESSION = ("tests/receiver_service/test_session.py", "tests/receiver/test_apply.py")
_INBOX = ("tests/receiver/test_inbox.py", "tests/receiver/test_apply.py")
_THINNING = ("tests/receiver/test_thinning.py",)
_SEAT = ("tests/receiver_service/test_seat.py",)

MUTANTS = (
    Mutant(
        "a stream begins with a sync",
        "receiver/front.py",
        "    if record.type != RecordType.SYNC_BEGIN:",
        "    if record.type == RecordType.DETACH:",
        (*_SESSION, "tests/receiver/test_points.py"),
    ),
    Mutant(
        "a resume at another chain is refused",
        "receiver/intake.py",
        "        if chain != stream.durable_chain:",
        "        if chain < 0:",
        (*_SESSION, *_INBOX),
    ),
    Mutant(
        "a stream of a lower ordinal stays closed",
        "receiver/intake.py",
        "            if ordinal <= max(state.ordinal, state.closed_ordinal):",
        "            if ordinal <= state.closed_ordinal:",
        (*_SESSION, *_INBOX, "tests/receiver/test_rollback.py"),
    ),
    Mutant(
        "a frame continues the one before",
        "receiver/intake.py",
        "if header.start_lsn != stream.received_lsn or header.chain_start != stream.chain:",
        "if header.start_lsn != stream.received_lsn:",
        ("tests/receiver/test_points.py",),
    ),
    Mutant(
        "the newest point is never thinned",
        "receiver/thinning.py",
        "    for point in points[:-1]:\n        moment_ns = end_ns(point)",
        "    for point in points:\n        moment_ns = end_ns(point)",
        _THINNING,
    ),
    Mutant(
        "what is younger than the lock is never thinned",
        "receiver/thinning.py",
        "        if not is_younger(point, protection.younger_than_ns, now_ns):",
        "        if True:",
        _THINNING,
    ),
    Mutant(
        "a bucket keeps its oldest point",
        "receiver/thinning.py",
        "    bucket = moment_ns // rule.step_ns",
        "    bucket = (moment_ns + rule.step_ns // 2) // rule.step_ns",
        _THINNING,
    ),
    Mutant(
        "a label keeps its point until its expiry",
        "receiver/thinning.py",
        "        if point.sequence in protection.pinned or is_promised(point, now_ns):",
        "        if point.sequence in protection.pinned:",
        _THINNING,
    ),
    Mutant(
        "another agent is refused while one feeds the group",
        "receiver/seat.py",
        "        if old.instance != sitter.instance:",
        "        if not old.instance:",
        _SEAT,
    ),
    Mutant(
        "the old session has let go before the new one is answered",
        "receiver/seat.py",
        "        self.fenced += 1\n        await old.fence()\n",
        "        self.fenced += 1\n",
        _SEAT,
    ),
)
