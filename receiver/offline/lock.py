# SPDX-License-Identifier: Apache-2.0
"""Keeping a receiver away from a data_dir that an offline tool reads.

Shared, so that several tools may read at once; nothing is written for it. A bare copy has no lock,
and needs none.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replicator.base.errors import OwnedError


@contextmanager
def no_receiver(data_dir: Path | None) -> Iterator[None]:
    """Raises OwnedError where a receiver runs on it."""
    path = None if data_dir is None else data_dir / "lock"
    if path is None or not path.exists():
        yield
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OwnedError(
                f"a receiver runs on {data_dir}",
                hint="ask it (replicator restore, replicator view open), or stop it first",
            ) from None
        yield
    finally:
        os.close(descriptor)
