# SPDX-License-Identifier: Apache-2.0
"""What a reload answers, from what is different between two configurations. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from replicator.base.errors import UsageError
from replicator.control.requests import ReloadRequest
from replicator.control.types import ConfigChange, ReloadResult, Role


class Change(Protocol):
    """See replicator.config.changes.Change."""

    @property
    def place(self) -> str: ...
    @property
    def kind(self) -> Literal["added", "removed", "changed"]: ...
    @property
    def before(self) -> str: ...
    @property
    def after(self) -> str: ...
    @property
    def live(self) -> bool: ...


def reload_result(role: Role, name: str, changes: Sequence[Change]) -> ReloadResult:
    return ReloadResult(
        role=role,
        name=name,
        changes=[
            ConfigChange(
                place=change.place,
                kind=change.kind,
                before=change.before,
                after=change.after,
                live=change.live,
            )
            for change in changes
        ],
    )


def require_removals(request: ReloadRequest, changes: Sequence[Change]) -> None:
    """Raises UsageError where something goes, and nobody has said that it may."""
    gone = [change.place for change in changes if change.kind == "removed"]
    if gone and not request.removes_too:
        raise UsageError(
            f"the configuration takes away: {'; '.join(gone)}",
            hint="nothing was changed; `replicator reload` asks, and `reload --yes` takes it over",
        )
