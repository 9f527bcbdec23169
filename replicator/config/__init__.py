# SPDX-License-Identifier: Apache-2.0
"""Configuration files: their types, how they are read, what is checked. No part of a daemon.

`load_agent` and `load_receiver` read a whole file or raise ConfigError (exit 2); what they return
needs no further check of form. Facts of the machine (a spool folder that is not on tmpfs, a
certificate that is not there) are not errors of the file: `environment.py` finds those.
"""

from __future__ import annotations

from replicator.config.agent import AgentConfig, DiskConfig, GroupConfig, load_agent
from replicator.config.decode import ConfigError
from replicator.config.receiver import ReceiverConfig, ReceiverGroupConfig, load_receiver

__all__ = [
    "AgentConfig",
    "ConfigError",
    "DiskConfig",
    "GroupConfig",
    "ReceiverConfig",
    "ReceiverGroupConfig",
    "load_agent",
    "load_receiver",
]
