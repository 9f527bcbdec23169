# SPDX-License-Identifier: Apache-2.0
"""Two ends of the wire talk, with nothing between them. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from replicator.wire.protocol import WireProtocol


def exchange(one: WireProtocol, other: WireProtocol, *, now_ns: int = 0) -> None:
    """Carries bytes both ways until neither end has more to say: a link without a socket."""
    ends: Iterable[tuple[WireProtocol, WireProtocol]] = ((one, other), (other, one))
    moved = True
    while moved:
        moved = False
        for source, target in ends:
            if pieces := source.data_to_send():
                moved = True
                target.receive_data(b"".join(pieces), now_ns=now_ns)
