# SPDX-License-Identifier: Apache-2.0
"""What holds for each test here."""

from __future__ import annotations

import pytest

from replicator.base.units import MIB


@pytest.fixture(autouse=True)
def _little_is_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the disk that all tests share."""
    monkeypatch.setattr("receiver.data_dir.reserve.BYTES_MAX", 2 * MIB)
