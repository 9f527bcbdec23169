# SPDX-License-Identifier: Apache-2.0
"""Whether the histories still reach as far as the audit has seen them. No I/O.

The digests of sealed segments are a chain, so nothing in its middle can be changed; except for
what a compaction has made, to which no later segment links: the audit notes the digest of each. And
who cuts off the end leaves a shorter chain that is as good. The audit notes each group's newest
sealed segment, so a history that ends before it, or that has another digest there, shows. Where
retention has removed that segment, or a compaction has taken it into a larger one, there is nothing
left to compare with, and that is no fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from receiver.audit.chain import Entry, Head, OpenEnd
from receiver.points.evidence import Reached
from replicator.control.orders import FORGET


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a history has: positions [first, end) in one sealed segment with this digest (that of
    the last one it stands for)."""

    first: int
    end: int
    digest: str
    own: str = ""
    """Its own digest, if a compaction has made it: no later segment links to that."""


def newest_heads(entries: Iterable[Entry]) -> dict[str, Head]:
    """The head that the audit saw last of each group, since it was last forgotten."""
    heads: dict[str, Head] = {}
    for entry in entries:
        if is_forgotten(entry):
            heads.pop(entry.object, None)
        heads.update(entry.heads)
    return heads


def newest_seen(
    entries: Iterable[Entry],
) -> tuple[dict[str, Head], dict[str, dict[int, str]], dict[str, OpenEnd]]:
    """What the audit saw last of each group, since it was last forgotten: its head, the digest of
    each compacted segment by position, and how far it had come."""
    heads: dict[str, Head] = {}
    rewritten: dict[str, dict[int, str]] = {}
    ends: dict[str, OpenEnd] = {}
    for entry in entries:
        if is_forgotten(entry):
            heads.pop(entry.object, None)
            rewritten.pop(entry.object, None)
            ends.pop(entry.object, None)
        heads.update(entry.heads)
        ends.update(entry.ends)
        for group, digests in entry.rewritten.items():
            rewritten.setdefault(group, {}).update(digests)
    return heads, rewritten, ends


def reached_by(head: Head | None, end: OpenEnd | None) -> Reached:
    """What these say at the group's next opening. The open end is noted with each head, and in
    older versions there was none."""
    if end is not None:
        return Reached(end.point, end.generation, end.position, by_this_version=True)
    return Reached(position=head.end if head is not None else 0)


def moved(before: Mapping[str, OpenEnd], now: Mapping[str, OpenEnd]) -> dict[str, OpenEnd]:
    """The groups that have come somewhere else."""
    return {group: end for group, end in now.items() if before.get(group) != end}


def is_set_back(before: Mapping[str, OpenEnd], now: Mapping[str, OpenEnd]) -> bool:
    """Whether one was accepted, or mended, at a place that it had been behind."""
    return any(
        group in before and end.position < before[group].position for group, end in now.items()
    )


def newest_rewritten(entries: Iterable[Entry]) -> dict[str, dict[int, str]]:
    """The digest that the audit saw last of each compacted segment, by group and position, since
    it was last forgotten."""
    seen: dict[str, dict[int, str]] = {}
    for entry in entries:
        if is_forgotten(entry):
            seen.pop(entry.object, None)
        for group, digests in entry.rewritten.items():
            seen.setdefault(group, {}).update(digests)
    return seen


def is_forgotten(entry: Entry) -> bool:
    """Whether the entry says that its group is gone, by order: what was seen of it until then
    counts no more. An order that failed, or was a mere question, has another outcome or none."""
    return (
        entry.order == FORGET.audit
        and entry.outcome == "done"
        and '"dry_run":true' not in entry.argument.replace(" ", "")
    )


def rewritten_news(
    before: Mapping[str, Mapping[int, str]], now: Mapping[str, Mapping[int, str]]
) -> dict[str, dict[int, str]]:
    """The compacted segments that are other than before."""
    found: dict[str, dict[int, str]] = {}
    for group, digests in now.items():
        old = before.get(group, {})
        if fresh := {first: each for first, each in digests.items() if old.get(first) != each}:
            found[group] = fresh
    return found


def unseen(group: str, stretches: Sequence[Stretch], seen: Mapping[int, str]) -> list[str]:
    """What is wrong with compacted segments, by what the audit saw of them."""
    return [
        f"the compacted segment at position {each.first} of group {group} is not one that the audit"
        " saw: it was changed, or made in the last seconds before a crash"
        for each in stretches
        if each.own and seen.get(each.first) != each.own
    ]


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
