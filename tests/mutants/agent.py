# SPDX-License-Identifier: Apache-2.0
"""The agent: what may be shipped, and what a sync need not ship."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_RESUME = ("tests/agent/test_resume.py",)
_FILTER = ("tests/agent/test_sync_filter.py",)
_SHIPPER = ("tests/agent/test_shipper.py", "tests/agent/test_resume.py")

MUTANTS = (
    Mutant(
        "a receiver that was set back is not fed",
        "agent/shipping/resume.py",
        "    if welcome.generation < generation_seen:",
        "    if welcome.generation < 0:",
        _RESUME,
    ),
    Mutant(
        "a receiver that was rolled back waits for the operator",
        "agent/shipping/resume.py",
        "    if welcome.generation > generation_accepted:",
        "    if welcome.generation > generation_accepted + 1:",
        _RESUME,
    ),
    Mutant(
        "a resume compares the chain",
        "agent/shipping/resume.py",
        "    if stream.chain_at_durable != welcome.chain:",
        "    if stream.chain_at_durable is None:",
        _RESUME,
    ),
    Mutant(
        "a resume compares the ordinal",
        "agent/shipping/resume.py",
        "    if stream.name.ordinal != welcome.ordinal:",
        "    if stream.name.ordinal < welcome.ordinal:",
        _RESUME,
    ),
    Mutant(
        "a closed stream is not resumed",
        "agent/shipping/resume.py",
        "    if stream.name.ordinal <= welcome.closed_ordinal:",
        "    if stream.name.ordinal < welcome.closed_ordinal:",
        _RESUME,
    ),
    Mutant(
        "a stream that comes after is shipped from its sync-begin alone",
        "agent/shipping/resume.py",
        "    if not stream.begins_with_sync:",
        "    if not stream.begins_with_sync and not stream.live:",
        _RESUME,
    ),
    Mutant(
        "a digest older than what was shipped is not used",
        "agent/shipping/sync_filter.py",
        "        usable = lsn >= self._base_lsn\n",
        "        usable = lsn >= 0\n",
        _FILTER,
    ),
    Mutant(
        "a shipped byte voids the digest of its block",
        "agent/shipping/sync_filter.py",
        """                kind = PieceKind.SHIP
                self._touch(block)""",
        """                kind = PieceKind.SHIP""",
        _FILTER,
    ),
    Mutant(
        "a digest does not undo a touch",
        "agent/shipping/sync_filter.py",
        """        chunk = self._chunk(index)
        if chunk is None or chunk.states[at] == _TOUCHED:
            return
        if chunk.digests is None:""",
        """        chunk = self._chunk(index)
        if chunk is None:
            return
        if chunk.digests is None:""",
        _FILTER,
    ),
    Mutant(
        "an acknowledgement beyond what was sent is refused",
        "agent/shipping/shipper.py",
        "        if ack.durable_lsn > at.lsn:",
        "        if ack.durable_lsn < 0:",
        _SHIPPER,
    ),
    Mutant(
        "a hold counts when the receiver says so",
        "agent/shipping/shipper.py",
        "            self._hold = hold\n            out.append(hold)",
        "            self._hold = hold\n            out.append(hold)\n"
        "            self._held_until_ns = hold.until_ns",
        _SHIPPER,
    ),
)
