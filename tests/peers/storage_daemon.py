# SPDX-License-Identifier: Apache-2.0
"""QEMU's storage daemon as the source: real `blockdev-mirror` semantics without a guest.

A raw image is exported over NBD for the load; `mirror()` runs a write-blocking mirror of it into
another NBD server, with the parameters that the libvirt driver asks for.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.peers.process import running, wait_for_unix

Message = dict[str, Any]
ANSWER_LIMIT_SECONDS = 60.0


class QmpError(Exception):
    """QEMU refused a command."""


class Qmp:
    """A QMP connection: commands in turn, events kept until somebody waits for them."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_LIMIT_SECONDS)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self.events: list[Message] = []
        self._read()  # the greeting
        self.execute("qmp_capabilities")

    def _read(self) -> Message:
        line = self._file.readline()
        if not line:
            raise QmpError("QEMU closed the monitor")
        message: Message = json.loads(line)
        return message

    def execute(self, command: str, **arguments: object) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            message = self._read()
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait_event(self, wanted: Callable[[Message], bool]) -> Message:
        """The first event for which `wanted` is true, kept or still to come."""
        for index, event in enumerate(self.events):
            if wanted(event):
                return self.events.pop(index)
        while True:
            message = self._read()
            if "event" in message and wanted(message):
                return message
            self.events.append(message)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class StorageDaemon:
    """A running qemu-storage-daemon with one raw disk, exported for writing as `disk`."""

    def __init__(self, qmp: Qmp, uri: str, pid: int) -> None:
        self.qmp = qmp
        self.uri = uri
        self.pid = pid
        self._mirrors = 0

    def mirror(
        self,
        socket_path: Path,
        export: str = "",
        *,
        wait: bool = True,
        reconnect_seconds: int = 0,
        bytes_per_second: int = 0,
    ) -> str:
        """Starts a write-blocking mirror into an NBD export; waits for READY. Returns the job.
        `bytes_per_second` slows the background copy down; 0: as fast as it can."""
        self._mirrors += 1
        job, target = f"mirror{self._mirrors}", f"target{self._mirrors}"
        self.qmp.execute(
            "blockdev-add",
            **{"driver": "nbd", "node-name": target, "export": export},
            **{"reconnect-delay": reconnect_seconds},
            server={"type": "unix", "path": str(socket_path)},
        )
        self.qmp.execute(
            "blockdev-mirror",
            **{"job-id": job, "device": "source", "target": target, "sync": "full"},
            **{"copy-mode": "write-blocking", "granularity": 4096, "buf-size": 1 << 20},
            speed=bytes_per_second,
        )
        if wait:
            self.wait_ready(job)
        return job

    def wait_ready(self, job: str) -> None:
        def ended(event: Message) -> bool:
            data = event.get("data", {})
            return event["event"] in ("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED") and (
                data.get("device") == job
            )

        event = self.qmp.wait_event(ended)
        if event["event"] != "BLOCK_JOB_READY":
            raise QmpError(f"{job} ended: {event['data'].get('error', 'no reason given')}")

    def cancel(self, job: str) -> None:
        """Soft cancel: QEMU drains and flushes the target, and the source goes on alone."""
        self.qmp.execute("block-job-cancel", device=job)
        self.qmp.wait_event(
            lambda event: (
                event["event"] in ("BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED")
                and event["data"].get("device") == job
            )
        )


@contextlib.contextmanager
def storage_daemon(directory: Path, image: Path) -> Iterator[StorageDaemon]:
    """Serves a raw image (on the page cache) with a monitor to start mirrors from."""
    monitor, export, log = (directory / name for name in ("qmp.sock", "qsd.sock", "qsd.log"))
    command: list[str | Path] = [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=file0,filename={image}"),
        *("--blockdev", "driver=raw,node-name=source,file=file0"),
        *("--nbd-server", f"addr.type=unix,addr.path={export},max-connections=16"),
        *("--export", "type=nbd,id=load,node-name=source,name=disk,writable=on"),
        *("--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off"),
        *("--monitor", "chardev=monitor"),
    ]
    with running(command, log) as child:
        wait_for_unix(export, child, log)
        qmp = Qmp(monitor)
        try:
            yield StorageDaemon(qmp, f"nbd+unix:///disk?socket={export}", child.pid)
        finally:
            qmp.close()
