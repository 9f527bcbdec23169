# SPDX-License-Identifier: Apache-2.0
"""Names the trouble of a group in the log, with the traceback of a fault of the program."""

from __future__ import annotations

import logging

from replicator.base.errors import ReplicatorError
from replicator.base.trouble import is_bug, words_of

_log = logging.getLogger(__name__)


def named(group: str, what: str, error: Exception) -> ReplicatorError:
    """What to say of it, once it is in the log."""
    said = words_of(error)
    _log.error(
        "group in trouble",
        extra={"group": group, "what": what, "reason": said.message, "hint": said.hint},
        exc_info=error if is_bug(error) else None,
    )
    return said
