# SPDX-License-Identifier: Apache-2.0
"""From the order of a view to how it is served. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from receiver.views.open_views import OVERLAY_BYTES, ViewOptions
from replicator.base.address import Address
from replicator.base.errors import UsageError
from replicator.base.units import MIB
from replicator.control.requests import ViewRequest

OVERLAY_BYTES_MIN = 1 * MIB
LIFETIME_SECONDS_MAX = 366 * 24 * 3600.0
ANY_PORT = 0


def view_options(request: ViewRequest, agents: Sequence[str]) -> ViewOptions:
    """`agents` are those that may feed the group: they may read what they sent. Raises
    UsageError."""
    if request.allow and (request.listen is None or request.plain):
        raise UsageError("--allow is for views on TCP with TLS, where certificates have names")
    limit = request.overlay_max_bytes
    if limit is not None and not request.writable:
        raise UsageError("only a writable view has an overlay", hint="give --writable too")
    if limit is not None and limit < OVERLAY_BYTES_MIN:
        raise UsageError(f"an overlay of {limit} bytes is of no use; the least is 1 MiB")
    lifetime = request.lifetime_seconds
    if lifetime is not None and not 0 < lifetime <= LIFETIME_SECONDS_MAX:
        raise UsageError("a view is opened for more than nothing and at most a year")
    options = ViewOptions(
        writable=request.writable,
        overlay_bytes=OVERLAY_BYTES if limit is None else limit,
        lifetime_seconds=lifetime,
        listen=None if request.listen is None else _address(request.listen),
        is_plain=request.plain,
        allowed=frozenset((*agents, *request.allow)),
    )
    options.check()
    return options


def _address(text: str) -> Address:
    try:
        return Address.parse(text, default_port=ANY_PORT)
    except ValueError as error:
        raise UsageError(str(error)) from None
