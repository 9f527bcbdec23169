# SPDX-License-Identifier: Apache-2.0
"""Every bound of the wire, with its reason, and the relations between them. No I/O.

What a peer can make us hold, at most:
  before its hello is accepted   RECEIVE_BUFFER_BYTES;
  afterwards                     that, one message of MAX_FRAME_BODY_BYTES under way, and
                                 INBOX_HIGH_BYTES (plus one message) that the session has not taken;
  for each frame being opened    RAW_LIMIT_BYTES of records.
"""

from __future__ import annotations

from journal.record import HEADER_BYTES, PAYLOAD_LIMIT_BYTES
from replicator.base.units import KIB, MIB

PROTOCOL = 1
"""Rises with each incompatible change; both ends refuse another with exit code 17."""

MESSAGE_HEADER_BYTES = 16
FRAME_HEADER_BYTES = 72

UNGREETED_BODY_BYTES = 16 * KIB
"""Largest body before the hello is accepted. A hello with a hundred disks fits."""

RECEIVE_BUFFER_BYTES = 64 * KIB
"""Small messages are parsed in this; a body that does not fit gets memory of its own."""

CONTROL_BODY_BYTES = 1 * MIB
"""Largest body that is no frame: a full ACK or DIGESTS stays well below."""

FRAME_TARGET_BYTES = 192 * KIB
"""Records are gathered up to this before they are compressed: zstd is fastest from 128 to
256 KiB, and a frame this size keeps a slow link's latency low."""

RAW_LIMIT_BYTES = PAYLOAD_LIMIT_BYTES + 2 * MIB
"""Largest content of a frame: one record of the largest size, cut into pieces by a sync, or one
that fills up a frame that was nearly full."""

MAX_FRAME_BODY_BYTES = FRAME_HEADER_BYTES + RAW_LIMIT_BYTES
"""What does not shrink is stored as it is, so a body is never larger than its content."""

POINTS_PER_ACK = 1024
DIGESTS_PER_MESSAGE = 4096
"""Covers 256 MiB of a disk in 64 KiB of digests."""

DIGEST_BYTES = 16
DIGEST_BLOCK_BYTES = 64 * KIB
SYNC_KEY_BYTES = 32
ZERO_RUN_BLOCKS = 1 << 32
"""Zero blocks that one DIGESTS message may state: 256 TiB, more than any disk."""

MAX_DISKS = 1024

PING_SECONDS = 5.0
"""A side that has sent nothing for so long says PING."""

PONG_SECONDS = 1.0
"""A PING is answered unless the other side has heard something from us within this."""

DEAD_SECONDS = 20.0
"""A peer that has said nothing for so long is dead: four pings were lost."""

GREETING_SECONDS = 10.0
"""TLS and the hello have to be done by then."""

CLOSE_SECONDS = 3.0
"""How long a closing connection may take to deliver its last words."""

INBOX_HIGH_BYTES = 8 * MIB
INBOX_LOW_BYTES = 2 * MIB
"""Received and not yet taken by the session: beyond high we stop reading, below low we go on."""

SEND_HIGH_BYTES = 1 * MIB
SEND_LOW_BYTES = 256 * KIB
"""Handed to the socket and not yet taken by the kernel: beyond high, `drain` waits."""

assert UNGREETED_BODY_BYTES + MESSAGE_HEADER_BYTES <= RECEIVE_BUFFER_BYTES
assert RAW_LIMIT_BYTES >= PAYLOAD_LIMIT_BYTES + HEADER_BYTES + FRAME_TARGET_BYTES
# A largest write in pieces of one digest block: a header for each, and one for the uneven start.
_PIECES = PAYLOAD_LIMIT_BYTES // DIGEST_BLOCK_BYTES + 2
assert RAW_LIMIT_BYTES >= PAYLOAD_LIMIT_BYTES + _PIECES * HEADER_BYTES + FRAME_TARGET_BYTES
assert DIGESTS_PER_MESSAGE * DIGEST_BYTES + KIB <= CONTROL_BODY_BYTES
assert POINTS_PER_ACK * KIB <= CONTROL_BODY_BYTES
assert PONG_SECONDS < PING_SECONDS < DEAD_SECONDS / 2
