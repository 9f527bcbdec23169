# SPDX-License-Identifier: Apache-2.0
"""The states of an NBD connection as the server sees it, as a table. No I/O.

    GREETED ──CLIENT_FLAGS──► HAGGLING ──CHOSEN──► TRANSMISSION ──DISC──► LEAVING
                                 │ └─ABORT────────────────────────────────► │
                                 ├──STARTTLS──► SECURING ──SECURED──► HAGGLING
       any of these ──VIOLATION──► FAILED          any of these ──EOF──► ENDED

In LEAVING nothing more is read; what is owed is still answered. FAILED and ENDED are final. An
illegal move is a missing key, and a bug of ours: what a peer sends can only ever be a VIOLATION.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    GREETED = auto()  # our greeting is out, the client's flags are awaited
    HAGGLING = auto()  # options
    SECURING = auto()  # the TLS handshake, which is not ours
    TRANSMISSION = auto()  # requests
    LEAVING = auto()  # DISC or ABORT was received
    FAILED = auto()  # the peer broke the protocol
    ENDED = auto()  # the peer closed its side


class Event(Enum):
    CLIENT_FLAGS = auto()
    STARTTLS = auto()
    SECURED = auto()
    CHOSEN = auto()
    ABORT = auto()
    DISC = auto()
    EOF = auto()
    VIOLATION = auto()


TRANSITIONS: dict[State, dict[Event, State]] = {
    State.GREETED: {
        Event.CLIENT_FLAGS: State.HAGGLING,
        Event.VIOLATION: State.FAILED,
        Event.EOF: State.ENDED,
    },
    State.HAGGLING: {
        Event.STARTTLS: State.SECURING,
        Event.CHOSEN: State.TRANSMISSION,
        Event.ABORT: State.LEAVING,
        Event.VIOLATION: State.FAILED,
        Event.EOF: State.ENDED,
    },
    State.SECURING: {
        Event.SECURED: State.HAGGLING,
        Event.VIOLATION: State.FAILED,
        Event.EOF: State.ENDED,
    },
    State.TRANSMISSION: {
        Event.DISC: State.LEAVING,
        Event.VIOLATION: State.FAILED,
        Event.EOF: State.ENDED,
    },
    State.LEAVING: {Event.EOF: State.ENDED},
    State.FAILED: {Event.EOF: State.FAILED},
    State.ENDED: {Event.EOF: State.ENDED},
}
HANDSHAKE_STATES = frozenset({State.GREETED, State.HAGGLING, State.SECURING})
SILENT_STATES = frozenset({State.LEAVING, State.FAILED, State.ENDED})  # what comes is dropped


class RemoteError(Exception):
    """The peer broke the protocol beyond what an error reply can say. Caught by the protocol
    class, which fails and remembers the text; never seen outside this package."""
