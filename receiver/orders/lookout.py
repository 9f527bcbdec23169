# SPDX-License-Identifier: Apache-2.0
"""The audit's look at the groups' histories: each group by itself, in threads of its own.

A history whose disk does not answer is looked at later, and holds up neither the daemon nor the
look at another; one that cannot be read stops its group (receiver.tasks.stop). The audit notes of
each what was read last.

Concurrency: the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from receiver.audit.watch import HistoryWatch
from receiver.group.worker import GroupWorker
from replicator.base.trouble import words_of

LOOK_SECONDS = 10.0
"""How long who wants to know everything waits for a disk."""

_log = structlog.get_logger(__name__)


class Lookout:
    """Looks at `workers`; what it finds is `watch`'s."""

    def __init__(self, watch: HistoryWatch, workers: Mapping[str, GroupWorker]) -> None:
        self._watch = watch
        self._workers = workers
        self._looks: dict[str, asyncio.Task[None]] = {}

    def begin(self) -> None:
        """A look at every history that has changed, where none is under way."""
        for name, worker in self._workers.items():
            if (
                name in self._looks
                or not worker.health.is_recovered
                or worker.health.stopped is not None
            ):
                continue
            if not self._watch.is_current(name, worker.replica.history.segment_set.sealed):
                self._looks[name] = asyncio.create_task(self._look(worker))

    async def complete(self) -> None:
        """Everything as it is now, but for disks that do not answer."""
        self.begin()
        if self._looks:
            await asyncio.wait(self._looks.values(), timeout=LOOK_SECONDS)

    async def close(self) -> None:
        """The last look: nothing changes any more, the workers are closed."""
        for look in self._looks.values():
            look.cancel()
        for name, worker in self._workers.items():
            if worker.health.is_recovered and worker.health.stopped is None:
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await asyncio.to_thread(
                            self._watch.read, name, worker.replica.history.segment_set.sealed
                        )
                except Exception as error:  # noqa: BLE001 - a supervision: others are looked at too
                    _log.error("audit.not_looked", group=name, reason=words_of(error).message)

    async def _look(self, worker: GroupWorker) -> None:
        """A supervision."""
        try:
            await worker.aside.run(
                self._watch.read, worker.name, worker.replica.history.segment_set.sealed
            )
        except Exception as error:  # noqa: BLE001
            worker.health.stop.because(error, "audit look-up")
        finally:
            del self._looks[worker.name]
