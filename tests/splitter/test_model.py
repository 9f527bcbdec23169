# SPDX-License-Identifier: Apache-2.0
"""Random histories against plain models: what is in the log, and what a cut may claim.

Two models. `Clients` are connections to an external group on a spool that fills up, fails and
sticks: the log must hold an exact prefix of what was received, with everything that was answered
as kept. `Guest` is a VM with two mirrored disks whose mirrors may end in every way that QEMU's do,
after which its writes complete unseen: no cut may hold a write without an earlier one.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from journal.record import Record, RecordType
from replicator.base.errors import NoPointError
from replicator.base.units import KIB
from replicator.nbd.exports import EndKind
from replicator.nbd.request import Request
from tests.splitter.rig import (
    DISK,
    MEMORY,
    SECOND,
    Client,
    Rig,
    external,
    libvirt,
    refused,
    write,
    zero,
)
from tests.world.storage import Failure

SMALL = 256 * KIB


def data_of(records: list[Record]) -> list[tuple[int, int, bytes]]:
    """(disk, offset, content) of the writes and zeroes, in order."""
    return [
        (record.disk, record.offset, bytes(record.payload) or bytes(record.length))
        for record in records
        if record.type in (RecordType.WRITE, RecordType.ZERO)
    ]


class Clients:
    """An external group with two disks and three connections."""

    def __init__(self) -> None:
        self.rig = external(
            "a", "b", rig=Rig("external", memory_bytes=2 * SMALL, disk_bytes=2 * SMALL)
        )
        self.clients = [self.rig.connect(name) for name in ("a", "b", "a")]
        self.number = 0
        self.begin()

    def begin(self) -> None:
        """A new stream: what is in it starts here."""
        self.received: list[tuple[int, int, bytes]] = []
        self.kept = 0  # so many of them were answered as kept
        self.length_at_loss: int | None = None

    def batch(self, which: int, shape: list[int]) -> None:
        client = self.clients[which]
        if len(client.answers) < client.sent:
            return  # a held connection brings nothing
        requests: list[Request] = []
        content: list[tuple[int, int, bytes]] = []
        for size in shape:
            self.number += 1
            offset = self.number % 64 * 512
            if size:
                payload = self.number.to_bytes(4, "little") * (128 * size)
                requests.append(write(offset, payload))
            else:
                payload = bytes(512)
                requests.append(zero(offset, 512))
            content.append((client.disk.index, offset, payload))
        client.sent += 1
        if self.rig.state() == "lost":
            content = []
        self.received += content
        client.send(*requests)

    def end(self, which: int) -> None:
        client = self.clients[which]
        client.end(EndKind.EOF, mid_request=True)
        client.sent = len(client.answers)
        self.clients[which] = self.rig.connect(client.disk.name)

    def free(self, keep: int) -> None:
        """Unlinks what earlier streams have left, but for `keep` segments of each."""
        stream = self.rig.group.writer.stream
        assert stream is not None
        for directory in self.rig.tiers.directories("g"):
            for folder in self.rig.sim.names(directory):
                if folder != stream.name.directory:
                    for name in self.rig.sim.names(directory / folder)[: -keep or None]:
                        self.rig.sim.unlink(directory / folder / name)

    def check(self) -> None:
        rig = self.rig
        stream = rig.group.writer.stream
        assert stream is not None
        log = data_of(rig.log())
        assert log == self.received[: len(log)], "the log is no prefix of what was received"
        for client in self.clients:
            assert len(client.answers) <= client.sent
        if rig.state() == "lost":
            assert all(len(client.answers) == client.sent for client in self.clients), (
                "somebody waits although the group is lost"
            )
            if self.length_at_loss is None:
                self.length_at_loss = len(rig.log())
            assert len(rig.log()) == self.length_at_loss, "the log grew behind a loss"
        elif not stream.queued:
            assert log == self.received, "something that was answered is not in the log"


def do(clients: Clients, step: tuple[object, ...]) -> None:
    rig = clients.rig
    match step:
        case ("batch", int(which), list(shape)):
            clients.batch(which, shape)
        case ("tick", int(nanoseconds)):
            rig.tick(nanoseconds)
        case ("lane", int(limit)):
            rig.lane.run(min(limit, len(rig.lane.works)))
        case ("fail", bool(memory), int(number), int(written)):
            under = MEMORY if memory else DISK
            calls = frozenset({"pwritev"})
            rig.sim.plan(Failure(calls, 1, number, under=under, written=written or None))
        case ("free", int(keep)):
            clients.free(keep)
        case ("end", int(which)):
            clients.end(which)
        case ("resync",):
            if rig.state() == "lost":
                rig.sim.heal()
                rig.group.resync()
                clients.begin()


STEPS = st.one_of(
    st.tuples(
        st.just("batch"), st.integers(0, 2), st.lists(st.integers(0, 64), min_size=1, max_size=4)
    ),
    st.tuples(st.just("batch"), st.integers(0, 2), st.just([64, 64, 64])),
    st.tuples(st.just("tick"), st.sampled_from([0, SECOND // 3, SECOND, 2 * SECOND])),
    st.tuples(st.just("lane"), st.integers(1, 5)),
    st.tuples(
        st.just("fail"),
        st.booleans(),
        st.sampled_from([errno.EIO, errno.ENOSPC]),
        st.sampled_from([0, 0, 100, 1000]),
    ),
    st.tuples(st.just("free"), st.integers(0, 2)),
    st.tuples(st.just("end"), st.integers(0, 2)),
    st.tuples(st.just("resync")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_the_log_is_what_was_received_whatever_the_spool_does(
    steps: list[tuple[object, ...]],
) -> None:
    clients = Clients()
    for step in steps:
        do(clients, step)
        clients.check()
    clients.rig.tick(2 * SECOND)  # the longest that anybody may wait
    for client in clients.clients:
        assert len(client.answers) == client.sent, "somebody waits for ever"


@dataclass
class Mirror:
    """QEMU's mirror of one disk. `alive`: guest writes go through it. What it has sent and the
    splitter has not read yet lies in `unread`, in order."""

    client: Client
    alive: bool = True
    cancelled: bool = False
    unread: list[str] = field(default_factory=list)


class Guest:
    """A VM with two disks. It writes one block after another, each when the one before is
    complete; a write to a disk whose mirror has ended completes unseen."""

    def __init__(self) -> None:
        self.rig, clients = libvirt("a", "b")
        self.mirrors = [Mirror(client) for client in clients]
        self.history: list[tuple[int, int, bytes]] = []
        self.synced = len(data_of(self.rig.log()))

    def write(self, which: int) -> None:
        mirror = self.mirrors[which]
        number = len(self.history)
        payload = number.to_bytes(4, "little") * 128
        self.history.append((mirror.client.disk.index, number * 512, payload))
        if mirror.alive:
            # QEMU writes to a socket whose earlier bytes come first, and waits for the reply.
            self.read_all(which)
            if mirror.alive:
                mirror.client.write(number * 512, payload)

    def cancel(self, which: int) -> None:
        """A soft cancel: FLUSH, and the job ends when that is answered. DISC comes much later."""
        mirror = self.mirrors[which]
        if mirror.alive:
            self.read_all(which)
            mirror.client.flush()
            mirror.alive, mirror.cancelled = False, True

    def refuse(self, which: int) -> None:
        """We answer a write with an error: the job ends, the guest write is good all the same."""
        mirror = self.mirrors[which]
        if mirror.alive:
            self.read_all(which)
            mirror.client.send(refused(1 << 40, 512))
            mirror.alive = False
            number = len(self.history)
            self.history.append((mirror.client.disk.index, number * 512, bytes(512)))

    def hang_up(self, which: int, kind: str) -> None:
        """The socket is closed, for whatever reason; the splitter has not read that yet."""
        mirror = self.mirrors[which]
        if not mirror.client.gone:
            mirror.alive = False
            mirror.client.gone = True
            mirror.unread.append(kind)

    def read_all(self, which: int) -> None:
        """The splitter's loop comes round to this socket."""
        mirror = self.mirrors[which]
        while mirror.unread:
            if mirror.unread.pop(0) == "disc":
                mirror.client.disc()
            else:
                mirror.client.end(EndKind.EOF)

    def check(self) -> None:
        """Every cut is a prefix of what the guest saw complete, in its order."""
        seen: list[tuple[int, int, bytes]] = []
        for record in self.rig.log()[:]:
            if record.type == RecordType.CUT:
                data = seen[self.synced :]
                assert data == self.history[: len(data)], "a cut holds a write without an earlier"
            seen += data_of([record])


GUEST_STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 1)),
    st.tuples(st.just("write"), st.integers(0, 1)),
    st.tuples(st.just("tick"), st.just(0)),
    st.tuples(st.just("mark"), st.just(0)),
    st.tuples(st.sampled_from(["cancel", "refuse", "eof", "disc", "read"]), st.integers(0, 1)),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(GUEST_STEPS, max_size=30))
def test_no_cut_holds_a_write_without_an_earlier_one(steps: list[tuple[str, int]]) -> None:
    guest = Guest()
    for name, which in steps:
        match name:
            case "write":
                guest.write(which)
            case "tick":
                guest.rig.tick()
            case "mark":
                mark(guest.rig)
            case "cancel":
                guest.cancel(which)
            case "refuse":
                guest.refuse(which)
            case "read":
                guest.read_all(which)
            case _:
                guest.hang_up(which, name)
        guest.check()


def mark(rig: Rig) -> None:
    try:
        rig.group.mark(None, "crash", lambda _: None)
    except NoPointError:
        return
