# SPDX-License-Identifier: Apache-2.0
"""Numbers and layouts of the NBD wire protocol. No I/O.

Names are those of the protocol's specification without the prefix `NBD_`. Everything on the wire
is big-endian. Each layout is followed by its size, so that a slip in a format string cannot load.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

INIT_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT", also the second magic of the greeting
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF


class HandshakeFlag(IntFlag):
    """Server → client in the greeting; the client answers with the same two bits, 32 wide."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReply(IntEnum):
    """Those with the top bit set are errors."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    """What OPT_INFO and OPT_GO tell about an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


class Chunk(IntEnum):
    """Types of structured reply chunks. Those with the top bit set are errors."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


CHUNK_DONE = 1 << 0  # the only chunk flag: no more chunks follow for this cookie


class WireError(IntEnum):
    """The error values of a reply. They happen to equal Linux' errno, but are fixed."""

    OK = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


GREETING = Struct(">QQH")  # INIT_MAGIC, OPTION_MAGIC, handshake flags
assert GREETING.size == 18

CLIENT_FLAGS = Struct(">I")
assert CLIENT_FLAGS.size == 4

OPTION_HEADER = Struct(">QII")  # OPTION_MAGIC, option, length of what follows
assert OPTION_HEADER.size == 16

OPTION_REPLY_HEADER = Struct(">QIII")  # OPTION_REPLY_MAGIC, option, reply type, length
assert OPTION_REPLY_HEADER.size == 20

NAME_LENGTH = Struct(">I")
assert NAME_LENGTH.size == 4

INFO_TYPE = Struct(">H")  # also the count of information requests
assert INFO_TYPE.size == 2

INFO_EXPORT = Struct(">HQH")  # Info.EXPORT, size, transmission flags
assert INFO_EXPORT.size == 12

INFO_BLOCK_SIZE = Struct(">HIII")  # Info.BLOCK_SIZE, minimum, preferred, maximum
assert INFO_BLOCK_SIZE.size == 14

EXPORT_NAME_REPLY = Struct(">QH")  # size, transmission flags; then 124 zeroes or nothing
assert EXPORT_NAME_REPLY.size == 10
EXPORT_NAME_ZEROES = bytes(124)

REQUEST = Struct(">IHH8sQI")  # REQUEST_MAGIC, flags, command, cookie, offset, length
assert REQUEST.size == 28

SIMPLE_REPLY = Struct(">II8s")  # SIMPLE_REPLY_MAGIC, error, cookie
assert SIMPLE_REPLY.size == 16

CHUNK = Struct(">IHH8sI")  # STRUCTURED_REPLY_MAGIC, flags, type, cookie, length
assert CHUNK.size == 20

CHUNK_OFFSET = Struct(">Q")  # first field of OFFSET_DATA; the data follows
assert CHUNK_OFFSET.size == 8

CHUNK_HOLE = Struct(">QI")  # all of OFFSET_HOLE: offset, length
assert CHUNK_HOLE.size == 12

CHUNK_ERROR = Struct(">IH")  # first fields of ERROR: error, length of the message that follows
assert CHUNK_ERROR.size == 6

DEFAULT_PORT = 10809
