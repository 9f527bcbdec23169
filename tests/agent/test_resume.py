# SPDX-License-Identifier: Apache-2.0
"""Resume planning: every case by itself, all cases by enumeration, and against a world that lies.

The world: a host whose splitter may begin again at old LSNs and old ordinals, whose spool may be a
copy of an earlier one, and a receiver that may be set back. Records are numbered as they are made,
so a true prefix can be told from a false one whatever LSNs and ordinals say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import product
from uuid import UUID

import pytest

from agent.shipping import resume
from agent.shipping.resume import Fenced, Leg, Paused, Plan, SpoolStream, go_on, plan
from journal.spool import StreamName
from replicator.wire.messages import Welcome

A, B, C = (UUID(int=number) for number in (10, 11, 12))


def welcome(**changes: object) -> Welcome:
    facts: dict[str, object] = {
        "receiver": "r",
        "generation": 0,
        "stream": str(A),
        "ordinal": 4,
        "durable_lsn": 100,
        "chain": 77,
        "applied_lsn": 90,
        "closed_ordinal": 3,
        "next_point": 1,
    }
    return Welcome(**(facts | changes))  # type: ignore[arg-type]


def stream(uuid: UUID, ordinal: int, **changes: object) -> SpoolStream:
    base = SpoolStream(
        name=StreamName(ordinal, uuid),
        first_lsn=50,
        end_lsn=200,
        first_chain=5,
        begins_with_sync=True,
        chain_at_durable=None,
        live=False,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


OURS = stream(A, 4, chain_at_durable=77, live=True)


def decide(found: Welcome, *streams: SpoolStream) -> Plan:
    decided = plan(found, streams, generation_seen=0, generation_accepted=0)
    assert isinstance(decided, Plan)
    return decided


def test_the_stream_that_the_receiver_holds_goes_on_where_it_stopped() -> None:
    assert decide(welcome(), OURS) == Plan((Leg(OURS.name, 100, 77),))


def test_the_rest_of_the_old_stream_comes_before_the_new_one_whatever_their_order() -> None:
    old, new = replace(OURS, live=False), stream(B, 5, live=True)
    legs = (Leg(old.name, 100, 77), Leg(new.name, 50, 5))
    assert decide(welcome(), new, old).legs == legs


@pytest.mark.parametrize(
    ("found", "spool", "word"),
    [
        (welcome(chain=78), OURS, "another log"),
        (welcome(), replace(OURS, chain_at_durable=None), "another log"),
        (welcome(durable_lsn=49), OURS, "spool holds"),
        (welcome(durable_lsn=201), OURS, "spool holds"),
        (welcome(ordinal=5), OURS, "another ordinal"),
        (welcome(closed_ordinal=4), OURS, "closed"),
        (welcome(stream=None), stream(B, 4, live=True), "closed"),
        (welcome(stream=str(C)), stream(B, 3, live=True), "closed"),
        (welcome(stream=None), stream(B, 5, begins_with_sync=False, live=True), "beginning"),
    ],
)
def test_a_live_stream_that_proves_nothing_is_replaced(
    found: Welcome, spool: SpoolStream, word: str
) -> None:
    decided = decide(found, spool)
    assert decided.legs == ()
    assert word in decided.renew
    dead = decide(found, replace(spool, live=False))
    assert dead == Plan(())


def test_a_stream_without_records_is_waited_for() -> None:
    empty = stream(B, 5, end_lsn=50, begins_with_sync=False, live=True)
    assert decide(welcome(), empty) == Plan(())


def test_generations_fence_both_ways() -> None:
    def of(found: int, seen: int, accepted: int) -> object:
        return plan(
            welcome(generation=found),
            [OURS],
            generation_seen=seen,
            generation_accepted=accepted,
        )

    assert of(2, 3, 3) == Fenced(3, 2)
    assert of(3, 3, 2) == Paused(2, 3)
    assert of(4, 3, 3) == Paused(3, 4)
    assert isinstance(of(3, 3, 3), Plan)


def test_within_a_session_only_later_streams_follow() -> None:
    before, same, after = stream(A, 3), stream(B, 4), stream(C, 5)
    assert go_on(4, [before, same, after]).legs == (Leg(after.name, 50, 5),)


def test_every_combination_of_facts_gets_a_plan_that_breaks_no_rule() -> None:
    """Two streams, every relation of identity, ordinal, position and chain to the receiver."""
    count = 0
    for named, ordinal, closed, durable, chain in product(
        (None, A, B, C), (0, 4, 5, 6), (0, 3, 4, 5), (40, 50, 100, 200, 201), (77, 78)
    ):
        found = welcome(
            stream=None if named is None else str(named),
            ordinal=ordinal,
            closed_ordinal=closed,
            durable_lsn=durable,
            chain=chain,
        )
        for begins_a, begins_b, live_b, empty_b in product((True, False), repeat=4):
            one = stream(A, 4, begins_with_sync=begins_a, chain_at_durable=77)
            two = stream(
                B,
                5,
                begins_with_sync=begins_b and not empty_b,
                chain_at_durable=77,
                live=live_b,
                end_lsn=50 if empty_b else 200,
            )
            check(found, (one, two), decide(found, one, two))
            count += 1
    assert count == 4 * 4 * 4 * 5 * 2 * 16


def check(found: Welcome, streams: tuple[SpoolStream, ...], decided: Plan) -> None:
    by_name = {one.name: one for one in streams}
    ordinals = [leg.name.ordinal for leg in decided.legs]
    assert ordinals == sorted(set(ordinals))
    for number, leg in enumerate(decided.legs):
        spool = by_name[leg.name]
        resumes = found.stream == str(leg.name.stream)
        assert leg.name.ordinal > found.closed_ordinal
        if resumes:
            assert number == 0
            assert (leg.start_lsn, leg.chain) == (found.durable_lsn, found.chain)
            assert spool.chain_at_durable == found.chain
            assert leg.name.ordinal == found.ordinal
            assert spool.first_lsn <= found.durable_lsn <= spool.end_lsn
        else:
            assert leg.name.ordinal > found.ordinal
            assert (leg.start_lsn, leg.chain) == (spool.first_lsn, spool.first_chain)
            assert spool.begins_with_sync
    live = [one for one in streams if one.live and one.first_lsn < one.end_lsn]
    for one in live:
        assert (one.name in {leg.name for leg in decided.legs}) != bool(decided.renew)


# -- a world that lies


@dataclass
class Log:
    """One real stream: records are numbers that no other stream ever uses, but for copies."""

    name: StreamName
    start: int
    records: list[int] = field(default_factory=list)
    freed: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.records)

    def chain(self, lsn: int) -> int:
        return hash((self.name.stream, tuple(self.records[: lsn - self.start])))


@dataclass
class Lying:
    """One life of a host and a receiver. `held`: the receiver's stream, its start, its records."""

    seed: int
    made: int = 0
    ordinal: int = 0
    closed: int = 0
    streams: list[Log] = field(default_factory=list)
    held: tuple[StreamName, int, list[int]] | None = None

    def run(self) -> bool:
        """Whether the receiver holds a prefix of one true stream after each session."""
        rng = random.Random(self.seed)
        self.new_stream(rng, ordinal=1, start=0)
        snapshots: list[list[Log]] = []
        for _ in range(40):
            choice = rng.random()
            live = self.streams[-1]
            if choice < 0.4:
                self.write(live, rng.randrange(1, 5))
            elif choice < 0.65 and not self.session(rng):
                return False
            elif choice < 0.7:
                live.freed = max(live.freed, min(self.durable(live), live.end) - live.start)
            elif choice < 0.8:
                self.new_stream(rng, ordinal=live.name.ordinal + 1, start=live.end)
            elif choice < 0.85:  # the splitter's state is lost: old ordinals and LSNs again
                self.new_stream(rng, ordinal=rng.randrange(1, 4), start=rng.choice([0, live.start]))
            elif choice < 0.9:  # the spool is a copy of what it was
                snapshots.append(self.copy())
            elif choice < 0.95 and snapshots:
                self.streams = rng.choice(snapshots)
                self.streams = self.copy()
                self.write(self.streams[-1], 2)  # and goes on from there with other records
            elif rng.random() < 0.3:  # the receiver is set back, or lost all it had
                self.set_back(rng)
        return self.session(rng)

    def set_back(self, rng: random.Random) -> None:
        if self.held is None or rng.random() < 0.3:
            self.held = None
            self.ordinal = self.closed = 0
            return
        name, start, records = self.held
        self.held = (name, start, records[: rng.randrange(len(records) + 1)])

    def copy(self) -> list[Log]:
        return [Log(one.name, one.start, one.records[:], one.freed) for one in self.streams]

    def new_stream(self, rng: random.Random, *, ordinal: int, start: int) -> None:
        self.streams.append(Log(StreamName(ordinal, UUID(int=rng.getrandbits(100))), start))
        self.write(self.streams[-1], 1)

    def write(self, log: Log, count: int) -> None:
        for _ in range(count):
            self.made += 1
            log.records.append(self.made)

    def durable(self, log: Log) -> int:
        return self.held[1] + len(self.held[2]) if self.held and self.held[0] == log.name else 0

    def session(self, rng: random.Random) -> bool:
        held = self.held
        durable = held[1] + len(held[2]) if held else 0
        found = welcome(
            stream=str(held[0].stream) if held else None,
            ordinal=self.ordinal,
            closed_ordinal=self.closed,
            durable_lsn=durable,
            chain=hash((held[0].stream, tuple(held[2]))) if held else 0,
        )
        facts = [self.facts(one, found, live=one is self.streams[-1]) for one in self.streams]
        for leg in resume.plan(found, facts, generation_seen=0, generation_accepted=0).legs:  # type: ignore[union-attr]
            source = next(one for one in reversed(self.streams) if one.name == leg.name)
            shipped = source.records[leg.start_lsn - source.start :][: rng.randrange(8)]
            if self.held is not None and self.held[0] == leg.name:
                self.held[2].extend(shipped)
            else:
                self.closed = max(self.closed, self.ordinal)
                self.held = (leg.name, leg.start_lsn, shipped)
            self.ordinal = leg.name.ordinal
            whole = self.held[2] == source.records[: len(self.held[2])]
            if not whole or self.held[1] != source.start:
                return False
            if leg.start_lsn + len(shipped) < source.end:
                break  # the link went down
        return True

    def facts(self, log: Log, found: Welcome, *, live: bool) -> SpoolStream:
        at = found.durable_lsn
        inside = log.start + log.freed <= at <= log.end
        return SpoolStream(
            name=log.name,
            first_lsn=log.start + log.freed,
            end_lsn=log.end,
            first_chain=log.chain(log.start + log.freed),
            begins_with_sync=log.freed == 0,
            chain_at_durable=log.chain(at)
            if inside and found.stream == str(log.name.stream)
            else None,
            live=live,
        )


def lies_believed(seeds: range) -> int:
    return sum(not Lying(seed).run() for seed in seeds)


def test_no_lie_is_ever_believed() -> None:
    assert lies_believed(range(4000)) == 0


def by_lsn_alone(found: Welcome, spool: SpoolStream) -> tuple[Leg | None, str]:
    if spool.first_lsn <= found.durable_lsn <= spool.end_lsn:
        return Leg(spool.name, found.durable_lsn, found.chain), ""
    return None, "outside"


def test_resuming_by_lsn_alone_believes_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    real = resume._leg
    monkeypatch.setattr(
        resume,
        "_leg",
        lambda found, spool: (
            by_lsn_alone(found, spool)
            if found.stream == str(spool.name.stream)
            else real(found, spool)
        ),
    )
    assert lies_believed(range(1000)) > 0


def test_a_stream_from_its_middle_would_be_a_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    real = resume._leg
    monkeypatch.setattr(
        resume, "_leg", lambda found, spool: real(found, replace(spool, begins_with_sync=True))
    )
    assert lies_believed(range(1000)) > 0
