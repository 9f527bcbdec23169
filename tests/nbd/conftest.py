# SPDX-License-Identifier: Apache-2.0
"""Both event loops for whatever runs on one, and a directory whose paths fit a unix socket."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def directory() -> Iterator[Path]:
    """Of this test alone; pytest's own may be too long for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as path:
        yield Path(path)
