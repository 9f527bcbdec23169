# SPDX-License-Identifier: Apache-2.0
"""Configuration files: their types, how they are read, what is checked. No part of a daemon.

`load_agent` and `load_receiver` read a whole file or raise ConfigError (exit 2); what they return
needs no further check of form. Facts of the machine (a spool folder that is not on tmpfs, a
certificate that is not there) are not errors of the file: `environment.py` finds those.

    values  checks   what may stand there            |  decode       TOML → struct, or where it
    agent            agent.toml                      |               is wrong
    receiver         receiver.toml                   |  environment  the file and this machine
    role             whose file it is                |
    changes          two files: what takes effect    |
"""

from __future__ import annotations

from pathlib import Path

from replicator.config.agent import AgentConfig, DiskConfig, GroupConfig, load_agent
from replicator.config.decode import ConfigError, read_document
from replicator.config.receiver import ReceiverConfig, ReceiverGroupConfig, load_receiver
from replicator.config.role import role_of


def load_any(path: Path) -> AgentConfig | ReceiverConfig:
    """Whichever of the two `path` holds. Raises ConfigError."""
    role = role_of(read_document(path))
    if role is None:
        raise ConfigError(
            path,
            "",
            "is neither an agent's nor a receiver's configuration",
            hint="`replicator setup --print-units` names a sample of each",
        )
    return load_agent(path) if role == "agent" else load_receiver(path)


__all__ = [
    "AgentConfig",
    "ConfigError",
    "DiskConfig",
    "GroupConfig",
    "ReceiverConfig",
    "ReceiverGroupConfig",
    "load_agent",
    "load_any",
    "load_receiver",
]
