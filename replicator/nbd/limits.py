# SPDX-License-Identifier: Apache-2.0
"""Every bound of the NBD package, with its reason, and the relations between them. No I/O.

What a peer can make us hold, at most:
  before it has chosen an export   HANDSHAKE_BUFFER_BYTES, and the answers to MAX_OPTIONS options;
  afterwards, per connection       TRANSMISSION_BUFFER_BYTES, plus one request of MAX_BLOCK_BYTES,
                                   plus MAX_OUTSTANDING_READ_BYTES of answers.
What all peers together can make us receive is RECEIVE_BYTES_MAX (memory.py).
"""

from __future__ import annotations

from replicator.base.units import KIB, MIB
from replicator.nbd.constants import INFO_TYPE, NAME_LENGTH, OPTION_HEADER, REQUEST, Info

MAX_BLOCK_BYTES = 32 * MIB
"""Largest READ or WRITE; QEMU's own cap, so a mirror job splits as rarely as it can."""

MIN_BLOCK_BYTES = 512
"""QEMU sends guest-exact requests down to a sector, and never has to read to write one."""

PREFERRED_BLOCK_BYTES = 4096

MAX_EFFECT_BYTES = (1 << 32) - 1
"""Largest WRITE_ZEROES or TRIM: they carry no payload, so only the length field bounds them."""

MAX_NAME_BYTES = 4096
"""Of an export name or description; the specification's limit for strings."""

HANDSHAKE_BUFFER_BYTES = 8 * KIB
"""The receive buffer of a peer that has not chosen an export: all that it costs."""

MAX_OPTION_BYTES = HANDSHAKE_BUFFER_BYTES - OPTION_HEADER.size
"""Longer options end the connection. The longest honest one is GO with the longest name."""

MAX_OPTIONS = 64
"""Options before an export is chosen. QEMU and libnbd send fewer than ten."""

TRANSMISSION_BUFFER_BYTES = 256 * KIB + 4 * KIB
"""Sixty 4-KiB writes at a time; more than a unix socket holds by default (208 KiB)."""

MAX_REQUEST_BYTES = REQUEST.size + MAX_BLOCK_BYTES
"""The receive buffer grows to this for a request that needs it, and shrinks right behind it."""

RECEIVE_BYTES_MAX = 256 * MIB
"""What requests take, of all connections of a process together."""

OWN_RECEIVE_BYTES = 1 * MIB
"""What each connection has of that for itself, its usual buffer included: more than the kernel
holds of one, so a request up to this that has come whole is always read."""

NEWCOMERS = 32
"""Connections for which larger requests leave room."""

STALL_SECONDS = 1.0
"""A request that is there by half and has not grown for so long gives its memory back where others
wait for it. An honest client sends a request in one go."""

MAX_LISTS = 4
"""LIST is the one option whose answer is much longer than the question."""

MAX_DISCARD_BYTES = 64 * MIB
"""A refused WRITE up to this long is read and dropped, so that the client sees the error; a
longer one ends the connection, as the specification allows."""

MAX_STATUS_EXTENTS = 1 << 15
"""Of one answer to BLOCK_STATUS, 256 KiB; QEMU and nbdkit stop at a like number."""

MAX_OUTSTANDING_REQUESTS = 1024
"""Requests handed to an export and not yet answered, per connection; then we stop reading."""

MAX_OUTSTANDING_READ_BYTES = 64 * MIB
"""Bytes asked for by unanswered READs, per connection; then we stop taking requests."""

UNSENT_HIGH_BYTES = 1 * MIB
"""Replies that the peer does not collect; beyond it we take no requests until it does."""

JOIN_BYTES = 64 * KIB
"""Replies of a step up to this much are copied into one buffer: cheaper than a vector."""

MAX_CONNECTIONS = 220
MAX_HANDSHAKES = 32
"""Connections, and those among them that have not chosen an export yet: idle peers cannot take
all places, since a handshake has to end within HANDSHAKE_SECONDS."""

HANDSHAKE_SECONDS = 10.0
CLOSE_GRACE_SECONDS = 2.0
"""How long a closing connection may take to collect its last replies."""

_LONGEST_GO = NAME_LENGTH.size + MAX_NAME_BYTES + INFO_TYPE.size + len(Info) * INFO_TYPE.size
assert _LONGEST_GO <= MAX_OPTION_BYTES, "an honest GO must fit the handshake buffer"
assert MIN_BLOCK_BYTES <= PREFERRED_BLOCK_BYTES <= MAX_BLOCK_BYTES
assert MAX_BLOCK_BYTES % PREFERRED_BLOCK_BYTES == 0, "clients split at the maximum"
assert MAX_BLOCK_BYTES <= MAX_DISCARD_BYTES, "every write that may be refused can be dropped"
assert MAX_BLOCK_BYTES <= MAX_OUTSTANDING_READ_BYTES, "one largest read must always be taken"
assert HANDSHAKE_BUFFER_BYTES < TRANSMISSION_BUFFER_BYTES < MAX_REQUEST_BYTES
assert TRANSMISSION_BUFFER_BYTES <= OWN_RECEIVE_BYTES < MAX_REQUEST_BYTES
assert MAX_CONNECTIONS * OWN_RECEIVE_BYTES + MAX_REQUEST_BYTES <= RECEIVE_BYTES_MAX, (
    "with all connections there the largest request must still be taken"
)
assert MAX_HANDSHAKES < MAX_CONNECTIONS, "handshakes alone must not fill the server"
