# SPDX-License-Identifier: Apache-2.0
"""A step beside another: one file is synced while its caller syncs the next.

Concurrency: one caller, which waits for what it started before it starts more.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol


class Beside(Protocol):
    """For one group."""

    def start(self, step: Callable[[], None]) -> Callable[[], None]:
        """Begins it; what is returned waits for its end, and raises what it raised."""
        ...

    def close(self) -> None:
        """Waits for the step under way; none begins afterwards."""
        ...


class InThread:
    """In a thread of its own, which starts with the first step."""

    def __init__(self, group: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{group}.beside")

    def start(self, step: Callable[[], None]) -> Callable[[], None]:
        return self._pool.submit(step).result

    def close(self) -> None:
        self._pool.shutdown()


class InTurn:
    """Not beside, but when it is waited for: for a simulation, which has one thread."""

    def start(self, step: Callable[[], None]) -> Callable[[], None]:
        return step

    def close(self) -> None:
        """Nothing is under way."""
