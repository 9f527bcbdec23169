# SPDX-License-Identifier: Apache-2.0
"""Whose config a file is, told from what stands in it. No I/O.

Both sides have `[receiver]` and `[[group]]`, so it is their keys that count. A file with marks of
both is judged by the larger number: the decoder then names the key that does not belong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from replicator.config.decode import ConfigError

Role = Literal["agent", "receiver"]

_TABLES = {"agent": {"agent", "splitter", "libvirt"}, "receiver": {"history"}}
_RECEIVER_KEYS = {
    "agent": {"address"},
    "receiver": {"listen", "data_dir", "name", "control", "metrics"},
}
_GROUP_KEYS = {"agent": {"disk", "driver", "checkpoint_interval"}, "receiver": {"agents"}}


def role_of(document: Mapping[str, Any]) -> Role | None:
    """None where nothing in the file tells."""
    agent, receiver = _marks(document, "agent"), _marks(document, "receiver")
    if agent == receiver:
        return None
    return "agent" if agent > receiver else "receiver"


def refuse_other_role(file: Path, document: Mapping[str, Any], role: Role) -> None:
    """Raises ConfigError where the file is plainly the other side's."""
    found = role_of(document)
    if found not in (None, role) and not _marks(document, role):
        raise ConfigError(
            file, "", f"is a configuration of the {found}", hint=f"name the {role}'s with --config"
        )


def _marks(document: Mapping[str, Any], role: Role) -> int:
    link, groups = document.get("receiver"), document.get("group")
    keys = set(link) if isinstance(link, dict) else set()
    of_groups: set[str] = set()
    for group in groups if isinstance(groups, list) else ():
        of_groups |= set(group) if isinstance(group, dict) else set()
    return (
        len(_TABLES[role] & set(document))
        + len(_RECEIVER_KEYS[role] & keys)
        + len(_GROUP_KEYS[role] & of_groups)
    )
