# SPDX-License-Identifier: Apache-2.0
"""The rules for index files, over histories that grow, shrink and are rewritten."""

from __future__ import annotations

from itertools import pairwise
from math import log2

from hypothesis import given
from hypothesis import strategies as st

from receiver.history.index.file import Span
from receiver.history.index.levels import FANOUT, cover, missing, next_merge, topmost, touched


def segments_of(count: int, first: int = 0) -> list[Span]:
    return [Span(first + 10 * at, first + 10 * at + 10) for at in range(count)]


def settle(files: dict[Span, int]) -> int:
    """Merges until there is nothing to merge; runs written."""
    written = 0
    while chosen := next_merge(files):
        runs = sum(files[span] for span in chosen)
        written += runs
        files[Span(chosen[0].first, chosen[-1].end)] = runs
    return written


def test_eight_neighbours_become_one_and_stay() -> None:
    files = dict.fromkeys(segments_of(FANOUT - 1), 100)
    assert next_merge(files) == []
    files[Span(70, 80)] = 100
    assert next_merge(files) == segments_of(8)
    settle(files)
    assert Span(0, 80) in files
    assert len(files) == 9


def test_what_is_not_a_neighbour_is_not_merged() -> None:
    files = dict.fromkeys(segments_of(20), 100)
    del files[Span(70, 80)], files[Span(140, 150)]
    assert next_merge(files) == []


def test_one_large_file_is_not_written_again_for_a_few_small_ones() -> None:
    files = {Span(0, 10): 100_000} | dict.fromkeys(segments_of(9, 10)[:7], 10)
    assert next_merge(files) == []


def test_a_long_history_is_some_dozen_files_and_each_run_was_written_few_times() -> None:
    for count in (100, 320, 1600):
        files: dict[Span, int] = {}
        segments: list[Span] = []
        written = 0
        for segment in segments_of(count):
            segments.append(segment)
            files[segment] = 1000
            written += settle(files)
        parts = [len(cover(segments, files, 10 * at)) for at in range(count)]
        assert max(parts) <= 4 * log2(count), (count, max(parts))
        assert sum(parts) / count <= 2.5 * log2(count), (count, sum(parts) / count)
        assert written <= 6 * count * 1000, (count, written)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=60))
def test_whatever_happens_files_are_a_tree_and_cover_everything(
    steps: list[tuple[int, int]],
) -> None:
    """Segments come, the oldest go, runs in the middle are rewritten as one."""
    files: dict[Span, int] = {}
    segments: list[Span] = []
    end = 0
    for kind, size in steps:
        if kind == 0:
            for _ in range(size):
                segments.append(Span(end, end + 10))
                end += 10
        elif kind == 1 and segments:
            gone = segments[: size // 3]
            del segments[: size // 3]
            for span in touched(files, 0, gone[-1].end) if gone else []:
                del files[span]
        elif len(segments) > size + 3:
            low, high = segments[size].first, segments[size + 2].end
            segments[size : size + 3] = [Span(low, high)]
            for span in touched(files, low, high):
                del files[span]
        for span in missing(segments, files):
            files[span] = 5
        settle(files)
        assert not missing(segments, files)
        for left in files:
            for right in files:
                disjoint = left.end <= right.first or right.end <= left.first
                nested = (left.first <= right.first and right.end <= left.end) or (
                    right.first <= left.first and left.end <= right.end
                )
                assert disjoint or nested
        for segment in segments:
            found = cover(segments, files, segment.first)
            assert found[0].first == segment.first
            assert found[-1].end == segments[-1].end
            assert all(a.end == b.first for a, b in pairwise(found))
            assert set(found) <= set(files)


def test_segments_without_a_file_are_covered_by_themselves() -> None:
    segments = segments_of(4)
    assert cover(segments, [Span(10, 30)], 0) == [Span(0, 10), Span(10, 30), Span(30, 40)]
    assert cover(segments, [Span(10, 30)], 20) == [Span(20, 30), Span(30, 40)]
    assert cover(segments, [], 40) == []
    assert missing(segments, [Span(10, 30), Span(0, 10)]) == segments[:0:-1]


def test_the_topmost_contain_the_others() -> None:
    spans = [Span(0, 10), Span(0, 80), Span(70, 80), Span(80, 90)]
    assert topmost(spans) == [Span(0, 80), Span(80, 90)]
    assert touched(spans, 75, 80) == [Span(0, 80), Span(70, 80)]


def test_a_history_that_is_indexed_at_once_comes_to_as_few_files() -> None:
    """As after the index was lost; segments differ a little in size."""
    for count in (100, 320, 1600):
        segments = segments_of(count)
        files = {span: 1000 + 37 * at % 311 for at, span in enumerate(segments)}
        settle(files)
        parts = [len(cover(segments, files, span.first)) for span in segments]
        assert max(parts) <= 4 * log2(count)
