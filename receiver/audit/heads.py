# SPDX-License-Identifier: Apache-2.0
"""Whether the histories still reach as far as the audit has seen them. No I/O.

The digests of sealed segments are a chain, so nothing in its middle can be changed; but who cuts
off its end leaves a shorter one that is as good. The audit notes each group's newest sealed
segment, so a history that ends before it, or that has another digest there, shows. Where retention
has removed that segment, or a compaction has taken it into a larger one, there is nothing left to
compare with, and that is no fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from receiver.audit.chain import Entry, Head


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a history has: positions [first, end) in one sealed segment with this digest (that of
    the last one it stands for)."""

    first: int
    end: int
    digest: str


def newest_heads(entries: Iterable[Entry]) -> dict[str, Head]:
    """The head that the audit saw last of each group."""
    heads: dict[str, Head] = {}
    for entry in entries:
        heads.update(entry.heads)
    return heads


def news(before: Mapping[str, Head], now: Mapping[str, Head]) -> dict[str, Head]:
    """The heads that are other than before."""
    return {group: head for group, head in now.items() if before.get(group) != head}


def fault_of(group: str, head: Head, stretches: Sequence[Stretch], end: int) -> str | None:
    """What is wrong with a history whose sealed segments are `stretches`, oldest first, and that
    reaches up to `end`; None if nothing is."""
    for stretch in stretches:
        if stretch.end == head.end:
            if stretch.digest == head.digest:
                return None
            return (
                f"the history of group {group} has another digest at position {head.end}"
                " than the audit saw there"
            )
    first = stretches[0].first if stretches else end
    if end < head.end or not stretches:
        return (
            f"the history of group {group} ends at position {end}; the audit saw it sealed"
            f" up to {head.end}"
        )
    if head.end <= first or any(each.first < head.end < each.end for each in stretches):
        return None
    return f"the history of group {group} has no segment that ends at position {head.end}"
