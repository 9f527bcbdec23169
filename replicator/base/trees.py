# SPDX-License-Identifier: Apache-2.0
"""What a folder takes on its disk, with all that is in it. A walk: may take long."""

from __future__ import annotations

import os
from pathlib import Path

_BLOCK_BYTES = 512  # of st_blocks, whatever the filesystem's is


def tree_bytes(path: Path) -> int:
    """Allocated bytes, so that holes count nothing; 0 for what is not there. The folder may be a
    link, links in it are not followed. Raises OSError."""
    total = 0
    pending = [path]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
        except FileNotFoundError:
            continue  # it went meanwhile
    return total
