# SPDX-License-Identifier: Apache-2.0
"""The receiver's directory: what lies where, and its format.

    DATA_DIR/lock          held by the one receiver that works here
    DATA_DIR/format        the number of the layout below
    DATA_DIR/clock.json    the counted clock (receiver.counted)
    DATA_DIR/reserve/      room that is kept back (receiver.data_dir.reserve)
    DATA_DIR/catalog.db    an index, made anew from the histories
    DATA_DIR/audit/        every order, hash-chained (receiver.audit)
    DATA_DIR/groups/GROUP/{disks,inbox,history,views}/
    DATA_DIR/forgotten/    what is left to delete of groups that were forgotten (orders.leftovers)

The format number rises when a release writes what an older one would misread. An older release
then refuses to start here, before it has touched anything. Each file of the layout has its own
version besides; this number is about the whole.
"""

from __future__ import annotations

import errno
from pathlib import Path

from replicator.base.errors import DamageError, VersionError
from replicator.base.storage import Storage, read_whole, write_durably

FORMAT = 1
FORMAT_FILE_BYTES_MAX = 64


def catalog_path(data_dir: Path) -> Path:
    return data_dir / "catalog.db"


def clock_path(data_dir: Path) -> Path:
    return data_dir / "clock.json"


def audit_dir(data_dir: Path) -> Path:
    return data_dir / "audit"


def groups_dir(data_dir: Path) -> Path:
    return data_dir / "groups"


def forgotten_dir(data_dir: Path) -> Path:
    return data_dir / "forgotten"


def check_format(storage: Storage, data_dir: Path) -> None:
    """Writes the format of a new directory. Raises as `require_known_format`."""
    if storage.exists(data_dir / "format"):
        require_known_format(storage, data_dir)
    else:
        write_durably(storage, data_dir / "format", b"%d\n" % FORMAT)


def require_known_format(storage: Storage, data_dir: Path) -> None:
    """Changes nothing; a new directory has any format. Raises VersionError for a newer one,
    DamageError for a file that is none."""
    path = data_dir / "format"
    if not storage.exists(path):
        return
    try:
        content = read_whole(storage, path, FORMAT_FILE_BYTES_MAX).strip()
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        content = b""
    if not content.isdigit():
        raise DamageError(
            f"{path} does not hold a format number",
            hint=f"this release writes {FORMAT} there; restore the file if you know better",
        )
    if int(content) != FORMAT:
        raise VersionError(
            f"{data_dir} has format {int(content)}, this receiver knows format {FORMAT}",
            hint="it was written by another release: install that one",
        )
