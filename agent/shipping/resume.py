# SPDX-License-Identifier: Apache-2.0
"""What may be shipped to a receiver that has said what it holds. No I/O.

A receiver's durable LSN alone proves nothing: a splitter may have begun again at old LSNs, a spool
may be a copy, a receiver may have been set back. What proves that two logs are one is stream,
ordinal and the chain at that LSN. The plan is a list of legs, shipped one after the other:

  1. the rest of the stream that the receiver holds, if the spool continues it exactly: the
     same stream and ordinal, the LSN within the spool, the same chain there;
  2. then each stream of a higher ordinal than everything the receiver knows, in order, and
     only from its very first record, which must be a sync-begin.

The rest comes first: it makes more points, and once a later stream is open an earlier one stays
closed for ever. A stream that fits neither is never shipped. If that is the live one, the source
must begin a new stream (and sync): `Plan.renew` says why.

Fencing. The agent remembers the highest generation it has seen. A receiver with a lower one was
set back (restored from a copy) and may not be fed: Fenced. A receiver with a higher one than the
operator has accepted was rolled back: its old stream is closed, and to sync the source over it
is the operator's decision: Paused, until `resync`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from journal.spool import StreamName
from replicator.wire.messages import Welcome


@dataclass(frozen=True, slots=True)
class SpoolStream:
    """A stream as the spool holds it: LSNs from `first_lsn` on, at most up to `end_lsn` (of a dead
    stream the last records may turn out torn when they are read).

    `first_chain`: the chain at first_lsn.
    `begins_with_sync`: the stream's very first record is there and is a sync-begin.
    `chain_at_durable`: the chain at the receiver's durable LSN, for the stream that the receiver
    named and if that LSN is a record boundary within the spool; else None.
    `live`: the splitter may still append to it. A stream without records has first == end.
    """

    name: StreamName
    first_lsn: int
    end_lsn: int
    first_chain: int
    begins_with_sync: bool
    chain_at_durable: int | None
    live: bool


@dataclass(frozen=True, slots=True)
class Leg:
    """OPEN this stream at `start_lsn`, where its chain is `chain`, and ship it to its end."""

    name: StreamName
    start_lsn: int
    chain: int


@dataclass(frozen=True, slots=True)
class Plan:
    """`legs` in order. `renew`: why the live stream cannot be shipped and must be replaced; empty
    if it can, or if there is none, or if it has no record yet. A dead stream that can never be
    shipped stays in the spool until the receiver has opened a later one: the receiver may merely
    be looking at the wrong directory."""

    legs: tuple[Leg, ...]
    renew: str = ""


@dataclass(frozen=True, slots=True)
class Fenced:
    """The receiver forgot a generation. Nothing may be shipped."""

    seen: int
    found: int


@dataclass(frozen=True, slots=True)
class Paused:
    """The receiver went on to a generation that the operator has not accepted for this source."""

    accepted: int
    found: int


def plan(
    welcome: Welcome,
    streams: Sequence[SpoolStream],
    *,
    generation_seen: int,
    generation_accepted: int,
) -> Plan | Fenced | Paused:
    """`streams` in any order. See the head of this file."""
    if welcome.generation < generation_seen:
        return Fenced(generation_seen, welcome.generation)
    if welcome.generation > generation_accepted:
        return Paused(generation_accepted, welcome.generation)
    return _plan(welcome, streams)


def go_on(above_ordinal: int, streams: Sequence[SpoolStream]) -> Plan:
    """What may follow within a session, when the stream of `above_ordinal` has been shipped to
    its end: that one, and each before it, cannot be opened again."""
    after = Welcome("r", 0, None, above_ordinal, 0, 0, 0, above_ordinal, 0)
    return _plan(after, streams)


def _plan(welcome: Welcome, streams: Sequence[SpoolStream]) -> Plan:
    legs: list[Leg] = []
    renew = ""
    for stream in sorted(streams, key=lambda one: one.name):
        leg, reason = _leg(welcome, stream)
        if leg is not None:
            legs.append(leg)
        elif stream.live:
            renew = reason
    return Plan(tuple(legs), renew)


def _leg(welcome: Welcome, stream: SpoolStream) -> tuple[Leg | None, str]:
    """The leg, or None and why not; no reason for a stream that has no record yet."""
    if welcome.stream == str(stream.name.stream):
        return _rest(welcome, stream)
    if stream.name.ordinal <= max(welcome.ordinal, welcome.closed_ordinal):
        return None, "the receiver has closed this stream, or one that came after it"
    if stream.first_lsn == stream.end_lsn:
        return None, ""
    if not stream.begins_with_sync:
        return None, "the receiver does not hold this stream, and its beginning is gone"
    return Leg(stream.name, stream.first_lsn, stream.first_chain), ""


def _rest(welcome: Welcome, stream: SpoolStream) -> tuple[Leg | None, str]:
    if stream.name.ordinal != welcome.ordinal:
        return None, "the receiver knows this stream under another ordinal"
    if stream.name.ordinal <= welcome.closed_ordinal:
        return None, "the receiver has closed this stream"
    if not stream.first_lsn <= welcome.durable_lsn <= stream.end_lsn:
        return None, (
            f"the receiver holds the log up to LSN {welcome.durable_lsn}, the spool holds"
            f" [{stream.first_lsn}, {stream.end_lsn})"
        )
    if stream.chain_at_durable != welcome.chain:
        return None, f"the receiver holds another log than ours at LSN {welcome.durable_lsn}"
    return Leg(stream.name, welcome.durable_lsn, welcome.chain), ""
