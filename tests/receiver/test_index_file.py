# SPDX-License-Identifier: Apache-2.0
"""Index files and what many of them come to, against the index of single blocks in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.history.images import EarliestImages, block_key
from receiver.history.index.file import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    HEADER_BYTES,
    ChunkCache,
    IndexFile,
    IndexWriter,
    Span,
    open_index,
)
from receiver.history.index.runs import KEY_MAX, RUN, Runs, earliest, runs_of
from receiver.history.index.sweep import merged, sweep, windows
from replicator.base.errors import DamageError
from tests.receiver.test_images import Extents, extents
from tests.receiver.test_runs import blocks_of, tables_of
from tests.world.storage import SimStorage, Stopped

FOLDER = Path("/index")
IDENTITY = b"i" * 16
CACHE_BYTES = 1 << 20


def some_runs(count: int, seed: int, *, step: int = 6) -> Runs:
    """Runs of one block each, all of images of their own."""
    rng = Random(seed)
    rows = np.zeros(count, dtype=RUN)
    keys = sorted(rng.sample(range(count * step), count))
    rows["start"] = np.array(keys, dtype=np.uint64) + np.uint64(block_key(2, 0))
    rows["position"] = np.arange(count, dtype=np.uint64) * np.uint64(4160)
    rows["stored"] = 4096
    rows["blocks"] = rows["of"] = 1
    return Runs(rows)


def new_storage() -> SimStorage:
    storage = SimStorage()
    storage.make_directory(FOLDER)
    return storage


def written(storage: SimStorage, runs: Runs, span: Span, *, piece: int = 700) -> IndexFile:
    writer = IndexWriter(storage, FOLDER, span, IDENTITY)
    for at in range(0, len(runs), piece):
        writer.add(Runs(runs.rows[at : at + piece]))
    return writer.finish(ChunkCache(CACHE_BYTES))


@pytest.mark.parametrize("count", [0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, 5 * CHUNK_ROWS + 7])
def test_what_is_written_is_found_again(count: int) -> None:
    storage, runs = new_storage(), some_runs(count, 1)
    fresh = written(storage, runs, Span(100, 900))
    storage.power_cut(Random(3))  # it was durable when it was finished
    found = open_index(storage, fresh.path, ChunkCache(CACHE_BYTES))
    assert (found.span, found.identity, found.run_count) == (Span(100, 900), IDENTITY, count)
    assert found.block_count == count
    assert found.size_bytes == storage.open(fresh.path).size()
    for index in (fresh, found):
        assert index.within(0, KEY_MAX).rows.tobytes() == runs.rows.tobytes()
        pieces = [piece.rows.tobytes() for piece, _ in index.sequence(2)]
        assert b"".join(pieces) == runs.rows.tobytes()
    assert [name for name in storage.names(FOLDER) if name.endswith(".new")] == []


@given(st.integers(0, 1400), st.integers(0, 3000), st.integers(0, 400))
def test_within_reads_what_is_within(count: int, start: int, length: int) -> None:
    storage, runs = new_storage(), some_runs(count, count, step=2)
    index = written(storage, runs, Span(0, 1))
    low = block_key(2, start)
    assert index.within(low, low + length).images() == runs.cut(low, low + length).images()


def test_a_look_up_reads_few_chunks_and_the_next_one_none() -> None:
    runs = some_runs(200 * CHUNK_ROWS, 5)
    index = written(new_storage(), runs, Span(0, 1))
    low = block_key(2, 300_000)
    assert len(index.within(low, low + 1024)) > 100
    assert 0 < index.cache.read_bytes <= 2 * CHUNK_BYTES
    before = index.cache.read_bytes
    index.within(low + 10, low + 900)
    assert index.cache.read_bytes == before


def test_the_cache_keeps_no_more_than_it_may() -> None:
    cache = ChunkCache(100_000)
    storage, runs = new_storage(), some_runs(40 * CHUNK_ROWS, 5)
    written(storage, runs, Span(0, 1))
    index = open_index(storage, FOLDER / Span(0, 1).file_name, cache)
    for block in range(0, 200_000, 500):
        index.within(block_key(2, block), block_key(2, block + 1))
        assert cache.used_bytes <= 100_000
    assert cache.read_bytes >= 40 * CHUNK_BYTES - 2 * CHUNK_BYTES


def test_its_memory_is_a_fraction_of_a_byte_for_each_block() -> None:
    index = written(new_storage(), some_runs(100 * CHUNK_ROWS, 2), Span(0, 1))
    assert index.memory_bytes * 20 < index.block_count


# -- what is wrong with one


@pytest.mark.parametrize("place", range(0, HEADER_BYTES, 3))
def test_a_changed_header_is_found(place: int) -> None:
    storage = new_storage()
    index = written(storage, some_runs(700, 1), Span(0, 1))
    storage.flip(index.path, place)
    with pytest.raises(DamageError):
        open_index(storage, index.path, index.cache)


def test_a_changed_directory_is_found() -> None:
    storage = new_storage()
    index = written(storage, some_runs(700, 1), Span(0, 1))
    storage.flip(index.path, HEADER_BYTES + 700 * RUN.itemsize + 9)
    with pytest.raises(DamageError, match="directory"):
        open_index(storage, index.path, index.cache)


def test_a_changed_chunk_is_found_when_it_is_read() -> None:
    storage, runs = new_storage(), some_runs(3 * CHUNK_ROWS, 1)
    index = written(storage, runs, Span(0, 1))
    storage.flip(index.path, HEADER_BYTES + CHUNK_BYTES + 50)
    found = open_index(storage, index.path, ChunkCache(CACHE_BYTES))
    first = int(runs.starts[0])
    assert len(found.within(first, first + 9)) > 0
    bad = int(runs.starts[CHUNK_ROWS + 3])
    with pytest.raises(DamageError, match="chunk 1 fails"):
        found.within(bad, bad + 1)
    with pytest.raises(DamageError, match="chunk 1 fails"):
        list(found.sequence(2))


def test_one_that_is_cut_off_is_found() -> None:
    storage = new_storage()
    index = written(storage, some_runs(700, 1), Span(0, 1))
    file = storage.open(index.path, writable=True)
    for size in (0, 5, HEADER_BYTES, index.size_bytes - 1):
        file.truncate(size)
        with pytest.raises(DamageError):
            open_index(storage, index.path, index.cache)


def test_one_of_other_segments_is_found() -> None:
    storage = new_storage()
    index = written(storage, some_runs(7, 1), Span(0, 1))
    other = FOLDER / Span(0, 2).file_name
    storage.replace(index.path, other)
    with pytest.raises(DamageError, match="no index"):
        open_index(storage, other, index.cache)


def test_a_crash_leaves_a_whole_one_or_none() -> None:
    died = 0
    for at in range(40):
        storage = new_storage()
        storage.stop_at(at)
        try:
            written(storage, some_runs(600, 1), Span(0, 1))
        except Stopped:
            died += 1
        storage.heal()
        storage.power_cut(Random(at))
        path = FOLDER / Span(0, 1).file_name
        if storage.exists(path):
            found = open_index(storage, path, ChunkCache(CACHE_BYTES))
            assert found.within(0, KEY_MAX).rows.tobytes() == some_runs(600, 1).rows.tobytes()
    assert died > 5


# -- several at once


@given(st.lists(extents(), max_size=6), st.integers(1, 9))
def test_windows_are_the_whole(batches: list[Extents], window: int) -> None:
    parts = [runs_of(each) for each in tables_of(batches)]
    expected = blocks_of(earliest(parts).images())
    found: dict[int, object] = {}
    low: int | None = 0
    for runs, following in windows(parts, window):
        for key, image in blocks_of(runs.images()).items():
            assert low is not None
            assert low <= key
            assert following is None or key < following
            found[key] = image
        low = following
    assert found == expected
    assert blocks_of(merged(parts).images()) == expected


@given(st.lists(st.lists(extents(), max_size=3), max_size=5), st.integers(1, 5))
def test_a_sweep_is_the_earliest_of_all(groups: list[list[Extents]], window: int) -> None:
    tables = tables_of([of for group in groups for of in group])
    at, sequences = 0, []
    for group in groups:
        sequences.append(windows([runs_of(t) for t in tables[at : at + len(group)]], window))
        at += len(group)
    found: dict[int, object] = {}
    for runs, _ in sweep(sequences):
        for key, image in blocks_of(runs.images()).items():
            assert key not in found
            found[key] = image
    assert found == blocks_of(EarliestImages(tables).within(0, KEY_MAX))


def test_a_sweep_over_files_holds_little_at_once() -> None:
    """Of files of many chunks it has two pieces of each in memory, whatever they come to."""
    storage = new_storage()
    files = [
        written(storage, some_runs(30 * CHUNK_ROWS, seed, step=4), Span(seed, seed + 1))
        for seed in range(3)
    ]

    def pieces() -> Iterator[Runs]:
        for runs, _ in sweep([file.sequence(2) for file in files]):
            yield runs

    largest = max(len(runs) for runs in pieces())
    assert largest <= 3 * 2 * 2 * CHUNK_ROWS
    expected = earliest([file.within(0, KEY_MAX) for file in files])
    found = np.concatenate([runs.rows for runs in pieces()])
    assert found.tobytes() == expected.rows.tobytes()
