# SPDX-License-Identifier: Apache-2.0
"""Which index files there should be, and which of them answer for what. No I/O.

Each sealed segment gets a file of its own. Neighbouring files are merged into larger ones, as the
history grows, and the *smaller ones stay*: a point lies anywhere, and what is behind it is taken
apart into the largest files that begin where the last one ended (`cover`), so the files are a tree
over the segments. No two of them overlap unless one contains the other.

FANOUT neighbours are merged if the largest of them has no more than one GROWTH-th of all their
runs. So each run is written again about log(all runs, base GROWTH) times, and what is behind a
point is a dozen files or three, not thousands. The rule looks at sizes, not at levels: where
compaction and retention took files out of the tree, the rest goes on being merged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

from receiver.history.index.file import Span

FANOUT = 8
GROWTH = 4


def topmost(spans: Iterable[Span]) -> list[Span]:
    """Those that no other one contains, in order."""
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.first, -span.end)):
        if not found or span.first >= found[-1].end:
            found.append(span)
    return found


def next_merge(run_counts: Mapping[Span, int]) -> list[Span]:
    """The files that should become one, of those that are there; none if there are none. The
    oldest that fit: so none is left between merged ones, too few to be merged themselves."""
    tops = topmost(run_counts)
    for at in range(len(tops) - FANOUT + 1):
        chosen = tops[at : at + FANOUT]
        if any(left.end != right.first for left, right in pairwise(chosen)):
            continue
        weights = [run_counts[span] + 1 for span in chosen]
        if max(weights) * GROWTH <= sum(weights):
            return chosen
    return []


def cover(segments: Sequence[Span], spans: Collection[Span], first: int) -> list[Span]:
    """What lies from position `first` on, where a segment begins, to the end of the last segment:
    in order, files of `spans` as large as can be, and segments of which there is no file."""
    largest: dict[int, Span] = {}
    for span in spans:
        known = largest.get(span.first)
        if known is None or known.end < span.end:
            largest[span.first] = span
    found: list[Span] = []
    position = first
    for segment in segments:
        if segment.first == position:
            chosen = largest.get(position, segment)
            found.append(chosen)
            position = chosen.end
    return found


def missing(segments: Sequence[Span], spans: Collection[Span]) -> list[Span]:
    """The segments of which there is no file of their own, newest first: what is asked for most
    often lies near the end."""
    return [segment for segment in reversed(segments) if segment not in spans]


def touched(spans: Iterable[Span], low: int, high: int) -> list[Span]:
    """Those that say something about positions [low, high)."""
    return [span for span in spans if span.first < high and span.end > low]
