# SPDX-License-Identifier: Apache-2.0
"""The protocol between agent and receiver: one TLS 1.3 connection per group.

Read in this order: limits, messages (what is said), framing (how it stands on the wire), frames
(a run of the log, compressed), protocol (both ends as a state machine without a socket), link
(what a session sees), transport and identity (sockets and TLS), memory (two ends in one process).
docs/wire.md tells the same in prose.
"""
