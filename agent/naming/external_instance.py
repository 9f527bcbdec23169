# SPDX-License-Identifier: Apache-2.0
"""The identity of an external disk. No I/O.

libvirt knows which disk it is that has a name; of an external one the configuration is all that
names it. So splitter, which declares it, and agent, which offers it to the receiver, make the same
identity of its names.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID, uuid5

_NAMESPACE: Final = UUID("5f1f2a1e-7b3c-5d7e-8e0a-3c8f7f6c2b90")


def external_instance(group: str, disk: str) -> str:
    """A UUID, as text."""
    return str(uuid5(_NAMESPACE, f"{group}/{disk}"))
