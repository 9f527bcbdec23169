# SPDX-License-Identifier: Apache-2.0
"""The protocol between agent and receiver: one TLS 1.3 connection per group.

In the direction of the data; left of the bar nothing opens a socket:

    limits    every bound                               |  credentials  ours, read again when they
    messages  what is said                              |               change
    framing   how it stands on the wire                 |  identity     TLS, and who the peer is
    frames    a run of the log, compressed              |  doorway      who is let through TLS, how
    protocol  both ends, as a state machine             |               many at a time
    link      what a session sees of its connection     |  transport    links over TLS

docs/wire.md tells the same in prose.
"""
