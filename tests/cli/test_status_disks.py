# SPDX-License-Identifier: Apache-2.0
"""What `status` says of a disk."""

from __future__ import annotations

import pytest

from replicator.cli.status import _disk
from replicator.control.types import DiskStatus


@pytest.mark.parametrize(
    ("earlier", "said"),
    [([], "vda 2 MiB"), ([1 << 20, 3 << 20], "vda 2 MiB (1 MiB, 3 MiB earlier)")],
)
def test_sizes_that_a_disk_had_are_named(earlier: list[int], said: str) -> None:
    assert _disk(DiskStatus(name="vda", size=2 << 20, earlier_sizes=earlier)) == said
