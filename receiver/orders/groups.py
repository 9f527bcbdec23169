# SPDX-License-Identifier: Apache-2.0
"""Which group an order names. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

from receiver.group.worker import GroupWorker
from replicator.base.errors import NotFoundError


class KnownGroups:
    """`workers` is what the whole receiver looks groups up in; a reload changes it in place."""

    def __init__(self, workers: Mapping[str, GroupWorker]) -> None:
        self._workers = workers

    def all(self) -> list[GroupWorker]:
        return list(self._workers.values())

    def recovered(self) -> dict[str, GroupWorker]:
        return {
            name: worker for name, worker in self._workers.items() if worker.health.is_recovered
        }

    def worker(self, group: str) -> GroupWorker:
        """Raises NotFoundError."""
        worker = self._workers.get(group)
        if worker is None:
            raise NotFoundError(
                f"this receiver has no group {group!r}", hint="`replicator status` lists its groups"
            )
        return worker
