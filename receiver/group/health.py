# SPDX-License-Identifier: Apache-2.0
"""Whether a group can be asked for anything, and why not. No I/O.

A group is being recovered, is alive, or has been stopped (receiver.tasks.stop). One that was
recovered and stopped later goes on serving its points that are whole: so what only reads asks
`check_recovered`, and what changes something `check_alive`.

Concurrency: the event loop.
"""

from __future__ import annotations

from collections.abc import Callable

from receiver.group.group import GroupReplica
from receiver.tasks.stop import Stop
from replicator.base.errors import DamageError, ReplicatorError, UnreachableError


class Health:
    """See the head of this file. `paused`: why nothing is applied for now."""

    def __init__(
        self,
        replica: GroupReplica,
        stop: Stop,
        paused: Callable[[], ReplicatorError | None],
    ) -> None:
        self._name = replica.name
        self._replica = replica
        self._paused = paused
        self.stop = stop
        self.is_recovered = False
        self.is_closing = False
        """Orders that can be given up are given up at their next step."""

    @property
    def stopped(self) -> ReplicatorError | None:
        """See Stop."""
        return self.stop.reason

    @property
    def paused(self) -> ReplicatorError | None:
        """Why nothing is applied for now."""
        return self._paused()

    @property
    def trouble(self) -> ReplicatorError | None:
        """Why nothing is applied: for good, for now, or not yet."""
        if self.stopped is None and not self.is_recovered:
            return self._recovering()
        return self.stopped or self.paused

    def _recovering(self) -> ReplicatorError:
        return UnreachableError(
            f"group {self._name!r} is being recovered: what the last life left is read back",
            hint="it takes agents and orders when that has ended; if it never does, look at its"
            " disk",
        )

    def check_recovered(self) -> None:
        """Raises what kept the group from being recovered."""
        if not self.is_recovered:
            self.stop.check()
            raise self._recovering()

    def check_alive(self) -> None:
        """Raises what has stopped the group."""
        self.stop.check()

    def check_feedable(self) -> None:
        """Raises what keeps an agent from feeding the group now."""
        if self.stopped is not None:  # whatever stopped it, the agent is told the state
            raise DamageError(self.stopped.message, hint=self.stopped.hint)
        self.check_recovered()
        if self._replica.known.condition == "rolling-back":
            raise UnreachableError(
                f"a rollback of group {self._name!r} that was interrupted is being finished",
                hint="it takes agents again when that has ended",
            )
        if self._replica.opening.is_mending:
            raise UnreachableError(
                f"group {self._name!r} is being mended after its opening",
                hint="it takes agents again when that has ended",
            )
