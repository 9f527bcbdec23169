# SPDX-License-Identifier: Apache-2.0
"""A network disk whose server fails when a test says so: nbdkit over a plain file.

It takes 64 KiB at most, so QEMU sends a large request in pieces, one after the other, and one of
them may fail with those before it written: what a failing array or a full thin pool does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from replicator.demo.account import Account, require_program
from tests.peers.process import running, wait_for_unix

PIECE_BYTES = 64 << 10

_PWRITE = """
if [ -e {folder}/fail-writes ] && [ $3 -eq {piece} ]; then
    echo x >>{folder}/pieces
    if [ $(wc -l <{folder}/pieces) -gt 2 ]; then echo EIO >&2; exit 1; fi
fi
exec dd of={file} bs=256k seek=$4 oflag=seek_bytes iflag=fullblock conv=notrunc status=none
"""
_PREAD = """
if [ -e {folder}/fail-reads ] && [ $4 -ge {half} ]; then echo EIO >&2; exit 1; fi
exec dd if={file} bs=$3 skip=$4 count=$3 iflag=skip_bytes,count_bytes,fullblock status=none
"""


@dataclass
class FailingDisk:
    """`socket`: where its server listens."""

    folder: Path
    socket: Path

    def fail_writes(self, *, fails: bool = True) -> None:
        """The third whole piece from now on and all after it fail with EIO."""
        (self.folder / "pieces").unlink(missing_ok=True)
        self._set("fail-writes", fails=fails)

    def fail_reads(self, *, fails: bool = True) -> None:
        """Reads of the second half fail with EIO."""
        self._set("fail-reads", fails=fails)

    def _set(self, name: str, *, fails: bool) -> None:
        if fails:
            (self.folder / name).touch()
        else:
            (self.folder / name).unlink(missing_ok=True)


@contextmanager
def failing_disk(account: Account, home: Path, file: Path) -> Iterator[FailingDisk]:
    folder = account.make_directory(home / "failing")
    disk = FailingDisk(folder, folder / "nbd.sock")
    words = {"folder": folder, "file": file, "piece": PIECE_BYTES, "half": file.stat().st_size // 2}
    command = account.command(
        require_program("nbdkit", package="nbdkit"),
        *("--foreground", "--unix", str(disk.socket), "--filter=blocksize-policy", "eval"),
        *("blocksize-minimum=512", "blocksize-preferred=4096", f"blocksize-maximum={PIECE_BYTES}"),
        "blocksize-error-policy=error",
        f"get_size=stat -c %s {file}",
        f"pread={_PREAD.format(**words)}",
        f"pwrite={_PWRITE.format(**words)}",
        "flush=exit 0",
    )
    log = home / "nbdkit.log"
    with running(command, log, environment=account.environment(home)) as server:
        wait_for_unix(disk.socket, server, log)
        yield disk


def as_network_disk(xml: str, file: Path, socket: Path) -> str:
    """The domain with the disk of `file` served from `socket`."""
    before, after = (
        f'<source file="{file}" />',
        (f"<source protocol='nbd'><host transport='unix' socket='{socket}'/></source>"),
    )
    head, found, tail = xml.partition(before)
    assert found, xml
    start = head.rindex("<disk ")
    return head[:start] + head[start:].replace('type="file"', 'type="network"', 1) + after + tail
