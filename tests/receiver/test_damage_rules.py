# SPDX-License-Identifier: Apache-2.0
"""What is on record as damaged, against a model that knows each block by itself."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.damage import damage as rules
from receiver.history.bodies import DamagedBlocks
from receiver.history.images import U64, block_key

BLOCKS, NUMBERS = 12, 8
Model = set[tuple[int, int, int, int]]
"""(slot, block, written, replaced)"""

Steps = st.lists(
    st.tuples(
        st.sampled_from(["found", "written", "healed"]),
        st.integers(0, 1),
        st.sets(st.integers(0, BLOCKS - 1), min_size=1),
        st.integers(0, NUMBERS),
    ),
    max_size=12,
)


def spread(damage: rules.Damage) -> Model:
    found = [
        (each.slot, block, each.written, each.replaced)
        for each in damage
        for block in range(each.block, each.block + each.blocks)
    ]
    assert len(found) == len(set(found)), "nothing is said twice"
    return set(found)


def keys_of(slot: int, blocks: set[int]) -> U64:
    return np.array([block_key(slot, block) for block in sorted(blocks)], dtype=np.uint64)


@settings(max_examples=200, deadline=None)
@given(Steps)
def test_it_is_exact_block_by_block(steps: list[tuple[str, int, set[int], int]]) -> None:
    damage: rules.Damage = ()
    model: Model = set()
    for batch, (step, slot, blocks, written) in enumerate(steps, start=NUMBERS + 1):
        if step == "found":
            entries = [DamagedBlocks(slot, block, 1, written, 0) for block in blocks]
            damage = rules.added(damage, entries)
            model |= {(slot, block, written, 0) for block in blocks}
        elif step == "written":
            damage = rules.overwritten(damage, keys_of(slot, blocks), batch)
            model = {
                (s, b, w, batch if not r and s == slot and b in blocks else r)
                for s, b, w, r in model
            }
        else:
            damage = rules.healed(damage, keys_of(slot, blocks), replaced=0)
            model = {(s, b, w, r) for s, b, w, r in model if r or s != slot or b not in blocks}
        assert spread(damage) == model


def test_beyond_the_limit_more_is_said_to_be_damaged_and_never_less() -> None:
    entries = [
        DamagedBlocks(block % 3, block * 2, 1, block % 5, 0 if block % 7 else 900)
        for block in range(2 * rules.ENTRIES_MAX)
    ]
    damage = rules.added((), entries)
    assert len(damage) == 3
    for each in entries:
        for number in (0, 3, 10, 950):
            if rules.touches(each, number):
                assert any(
                    all_.slot == each.slot
                    and all_.block <= each.block < all_.block + all_.blocks
                    and rules.touches(all_, number)
                    for all_ in damage
                )


def test_which_points_need_a_block() -> None:
    lost = DamagedBlocks(0, 1, 1, 3, 6)
    assert [number for number in range(9) if rules.touches(lost, number)] == [3, 4, 5]
    still_there = DamagedBlocks(0, 1, 1, 3, 0)
    assert [number for number in range(6) if rules.touches(still_there, number)] == [3, 4, 5]
