# SPDX-License-Identifier: Apache-2.0
"""Packed before-images: come back as they were, and are opened with suspicion."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from receiver.history.images import BLOCK_BYTES, EXTENT_BLOCKS
from receiver.history.packing import TRIES_MAX, Packer, unpack
from replicator.base.errors import DamageError
from tests.receiver.source import noise

contents = st.builds(
    lambda seed, length, is_noise: noise(seed, length) if is_noise else bytes([seed]) * length,
    st.integers(1, 255),
    st.integers(1, EXTENT_BLOCKS * BLOCK_BYTES),
    st.booleans(),
)


@given(st.lists(st.one_of(contents, st.just(b"")), max_size=40))
def test_what_is_stored_comes_back(images: list[bytes]) -> None:
    stored, packed = Packer().pack_all(images)
    for content, payload, is_packed in zip(images, stored, packed, strict=True):
        assert len(payload) <= len(content)
        blocks = -(-len(content) // BLOCK_BYTES)
        assert (unpack(payload, blocks, "test") if is_packed else payload) == content


def test_what_does_not_shrink_is_hardly_tried_and_what_does_is_found_again() -> None:
    packer = Packer()
    _, packed = packer.pack_all([noise(seed, BLOCK_BYTES) for seed in range(100)])
    assert not any(packed)
    _, packed = packer.pack_all([bytes([1]) * BLOCK_BYTES] * (TRIES_MAX + 5))
    assert sum(packed) >= 5
    assert all(packed[TRIES_MAX:])


@pytest.mark.parametrize(
    ("payload", "blocks"),
    [
        (zstandard.compress(bytes([7]) * 3 * BLOCK_BYTES), 2),  # more than the extent
        (zstandard.compress(bytes([7]) * BLOCK_BYTES), 2),  # a whole block too few
        (zstandard.compress(b""), 1),
        (b"no zstd at all", 1),
        (zstandard.compress(bytes([7]) * BLOCK_BYTES)[:-3], 1),
    ],
    ids=["larger", "shorter", "empty", "other", "cut"],
)
def test_what_is_not_the_image_is_damage(payload: bytes, blocks: int) -> None:
    with pytest.raises(DamageError, match="packed image"):
        unpack(payload, blocks, "test")
