# SPDX-License-Identifier: Apache-2.0
"""The real process: real clients, kill -9, a full spool, agents that hang or talk nonsense."""

from __future__ import annotations

import asyncio
import grp
import os
import random
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from journal.bodies import Cut, DomainXml
from journal.record import RecordType
from replicator.base.errors import NotFoundError, ReplicatorError, UnreachableError, UsageError
from replicator.base.units import KIB, MIB
from replicator.control.splitter import (
    LINE_BYTES_MAX,
    AppendDomainXml,
    CloseStream,
    DeclareDisk,
    DiskDeclared,
    Done,
    DropConnections,
    Hello,
    HelloAnswer,
    Mark,
    Marked,
    OpenStream,
    Ready,
    Resync,
    SplitterGroupStatus,
    StreamOpened,
    SyncBegin,
)
from tests.peers.nbd_client import NbdClient, NbdError
from tests.peers.process import running as process
from tests.splitter.daemon import (
    COMMAND,
    SIZE,
    Agent,
    Home,
    agent,
    connect,
    control,
    home,
    splitter,
    start_in_vain,
    stop,
    uuid_text,
)
from tests.splitter.rig import body_of, image

BLOCK = 4 * KIB


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


@asynccontextmanager
async def running(place: Home) -> AsyncIterator[tuple[subprocess.Popen[bytes], Agent]]:
    with splitter(place) as child:
        async with agent(place) as one:
            yield child, one


async def run(*command: str) -> None:
    child = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await child.communicate()
    assert child.returncode == 0, output.decode()


def at_rest(group: SplitterGroupStatus) -> bool:
    """Cut, and idle since then."""
    return group.held_until_ns > group.last_cut_time_ns > 0


class TestWrites:
    async def test_what_real_clients_write_is_what_the_log_holds(self, place: Home) -> None:
        """qemu-io, one connection after another and two at once: the log makes the same disk."""
        model = bytearray(SIZE)
        async with running(place) as (_, one):
            for at, size, pattern in ((0, 64 * KIB, 1), (12 * KIB, 512, 2), (8 * MIB, MIB, 3)):
                order = f"write -P {pattern} {at} {size}"
                await run("qemu-io", "-f", "raw", "-c", order, place.uri("ext/a"))
                model[at : at + size] = bytes([pattern]) * size
            both = (
                f"write -z 4096 8192\ndiscard {8 * MIB} 65536\nwrite -P 9 {SIZE - 512} 512\nflush"
            )
            commands = [word for order in both.split("\n") for word in ("-c", order)]
            await asyncio.gather(
                run("qemu-io", "-f", "raw", *commands, place.uri("ext/a")),
                run("qemu-io", "-f", "raw", "-c", "write -P 7 0 4096", place.uri("ext/b")),
            )
            model[4096:12288] = bytes(8192)
            model[8 * MIB : 8 * MIB + 65536] = bytes(65536)
            model[SIZE - 512 :] = bytes([9]) * 512
            status = await one.until("ext", at_rest)
        records = place.records("ext", status.end_lsn)
        assert image(records, 0, SIZE) == model
        assert image(records, 1, SIZE) == bytes([7]) * 4096 + bytes(SIZE - 4096)
        assert status.state == "ready"
        assert status.requests >= status.latency.count > 0

    async def test_fio_at_depth_ends_without_a_loss(self, place: Home) -> None:
        async with running(place) as (_, one):
            await run(
                "fio", "--name=w", "--ioengine=nbd", f"--uri={place.uri('ext/a')}",
                "--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16m", "--io_size=8m",
            )  # fmt: skip
            status = await one.until("ext", lambda group: group.disks[0].connected == 0)
            assert (status.state, status.bytes) == ("ready", 8 * MIB)
        writes = [r for r in place.records("ext") if r.type == RecordType.WRITE]
        assert len(writes) == 2048

    async def test_nbdcopy_of_a_whole_image_arrives(self, place: Home) -> None:
        source = place.path / "source.raw"
        content = random.Random(5).randbytes(3 * MIB) + bytes(SIZE - 3 * MIB)
        source.write_bytes(content)
        async with running(place) as (_, one):
            await run("nbdcopy", str(source), place.uri("ext/a"))
            await one.until("ext", lambda group: group.disks[0].connected == 0)
        assert image(place.records("ext"), 0, SIZE) == content

    async def test_the_largest_request_is_one_record(self, place: Home) -> None:
        place.config.write_text(place.config.read_text().replace('"16MiB"', '"64MiB"'))
        payload = random.Random(1).randbytes(32 * MIB)
        async with running(place) as (_, one):
            async with await connect(place, "ext/a") as disk:
                assert disk.export.max_block_bytes == 32 * MIB
                await disk.pwrite(payload, offset=512)
            status = await one.until("ext", lambda group: group.bytes == 32 * MIB)
        assert status.state == "ready"
        (written,) = [r for r in place.records("ext") if r.type == RecordType.WRITE]
        assert (written.offset, written.payload) == (512, payload)

    async def test_reads_are_refused_and_writes_go_on(self, place: Home) -> None:
        async with running(place) as (_, one):
            async with await connect(place, "ext/a") as disk:
                with pytest.raises(NbdError) as caught:
                    await disk.pread(offset=0, length=512)
                assert caught.value.error == 1
                await disk.pwrite(b"x" * 512, offset=0)
            assert (await one.until("ext", lambda _: True)).state == "ready"

    async def test_unknown_exports_are_unknown(self, place: Home) -> None:
        with splitter(place):
            for name in ("ext/c", "ext", "vm/vm-vda", "", "/"):
                with pytest.raises(NotFoundError):
                    await connect(place, name)

    async def test_a_client_without_manners_harms_nobody(self, place: Home) -> None:
        async with running(place) as (_, one), await connect(place, "ext/a") as disk:
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.connect(str(place.path / "nbd"))
                stranger.sendall(os.urandom(4096))
            other = await connect(place, "ext/b")
            assert other._transport is not None
            other._transport.write(b"\xff" * 64)  # no request
            with pytest.raises(UnreachableError):
                await other.flush()
            other.abort()
            await disk.pwrite(b"x" * 512, offset=0)
            assert (await one.until("ext", lambda _: True)).state == "ready"


class TestDeath:
    async def test_a_kill_in_the_middle_of_writes_loses_nothing_that_was_answered(
        self, place: Home
    ) -> None:
        """Each write has a content of its own; what was answered must be in the files, in order."""
        answered: list[tuple[int, int]] = []
        enough = asyncio.Event()

        async def writer(disk: NbdClient, export: int, lane: int) -> None:
            for number in range(1, 1 << 30):
                mark = struct.pack("<QQ", lane, number)
                await disk.pwrite(mark * 256, offset=lane * BLOCK)
                answered.append((export << 32 | lane, number))
                if len(answered) >= 3000:
                    enough.set()

        with splitter(place) as child:
            disks = [await connect(place, "ext/a"), await connect(place, "ext/b")]
            tasks = [
                asyncio.create_task(writer(disk, export, lane))
                for export, disk in enumerate(disks)
                for lane in range(8)
            ]
            await enough.wait()
            child.kill()
            await asyncio.gather(*tasks, return_exceptions=True)
            for disk in disks:
                disk.abort()
        last: dict[int, int] = {}
        for record in place.records("ext"):
            if record.type != RecordType.WRITE:
                continue
            lane, number = struct.unpack_from("<QQ", record.payload)
            key = record.disk << 32 | lane
            assert number == last.get(key, 0) + 1, "in the order in which they were sent"
            last[key] = number
        for key, number in answered:
            assert last[key] >= number, "an answered write is not in the log"
        assert len(answered) >= 3000

    async def test_the_next_one_goes_on_with_nothing_and_says_so(self, place: Home) -> None:
        async with running(place) as (child, one):
            async with await connect(place, "ext/a") as disk:
                await disk.pwrite(b"x" * BLOCK, offset=0)
            first = await one.until("ext", lambda group: group.bytes > 0)
            child.kill()
            child.wait()
        async with running(place) as (_, one):
            lost = await one.until("ext", lambda _: True)
            assert (lost.state, lost.stream) == ("lost", None)
            async with await connect(place, "ext/a") as disk:
                await disk.pwrite(b"y" * BLOCK, offset=0)  # the guest comes first
                await one.ask(lambda n: Resync(id=n, group="ext", above_ordinal=4), Done)
                await disk.pwrite(b"z" * BLOCK, offset=0)
                await disk.flush()
            async with await connect(place, "ext/b") as disk:
                await disk.flush()
            ready = await one.until("ext", lambda group: group.state == "ready")
        assert ready.ordinal == 5
        assert ready.first_lsn >= first.end_lsn
        writes = [r for r in place.records("ext") if r.type == RecordType.WRITE]
        assert [r.payload[:1] for r in writes] == [b"z"]

    async def test_sigterm_ends_with_a_point_of_everything(self, place: Home) -> None:
        async with running(place) as (child, one):
            async with await connect(place, "ext/a") as disk:
                await disk.pwrite(b"x" * BLOCK, offset=0)
            child.send_signal(signal.SIGTERM)
            status = await one.last_words()
            assert child.wait() == 0
        group = status.groups[0]
        assert (group.state, group.reason) == ("closed", "the splitter was stopped")
        records = place.records("ext")
        assert records[-1].type == RecordType.CUT
        assert records[-1].time_ns == group.last_cut_time_ns
        assert not (place.path / "nbd").exists()
        assert not place.control.exists()

    async def test_a_second_splitter_is_refused_and_the_first_goes_on(self, place: Home) -> None:
        async with running(place) as (_, one):
            second = start_in_vain(place)
            assert second.returncode == 11
            assert "running already" in second.stderr
            assert "Traceback" not in second.stderr
            async with await connect(place, "ext/a") as disk:
                await disk.pwrite(b"x" * 512, offset=0)
            assert (await one.until("ext", lambda _: True)).state == "ready"

    def test_bad_config_is_one_sentence_and_exit_2(self, place: Home) -> None:
        place.config.write_text(place.config.read_text().replace("max_", "mxa_") + "sizze = 3\n")
        done = start_in_vain(place)
        assert done.returncode == 2
        assert "sizze" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_count_of_starts_that_is_damaged_is_named(self, place: Home) -> None:
        """All groups need it; what one of them needs is in test_isolation.py."""
        state = place.path / "state" / "splitter"
        state.mkdir(parents=True)
        (state / "starts").write_text("{")
        done = start_in_vain(place)
        assert done.returncode == 13
        assert f"{state}/starts" in done.stderr

    async def test_a_spool_that_is_no_directory_is_named(self, place: Home) -> None:
        (place.memory / "ext").write_text("a file")
        async with running(place) as (_, one):
            lost = await one.until("ext", lambda group: group.state == "lost")
        assert f"{place.memory}/ext" in lost.reason
        assert "Traceback" not in place.log.read_text()


class TestSpool:
    async def test_a_full_spool_ends_continuity_and_no_write(self, place: Home) -> None:
        place.write_config(memory_size="2MiB", disk_size="2MiB")
        async with running(place) as (_, one):
            async with await connect(place, "ext/a") as disk:
                for number in range(96):
                    await disk.pwrite(bytes([number]) * (64 * KIB), offset=number * 64 * KIB)
            status = await one.until("ext", lambda group: group.state == "lost")
            assert "full" in status.reason
            assert status.memory_bytes <= 2 * MIB
            files = list(place.path.glob("spool/ext/*/*.seg"))
            assert files, "the disk was used before it was called full"
            records = place.records("ext", status.end_lsn)
        numbers = [r.payload[0] for r in records if r.type == RecordType.WRITE]
        assert numbers == list(range(len(numbers))), "a prefix of what was written"
        assert 48 <= len(numbers) < 64
        assert records[-1].type in (RecordType.WRITE, RecordType.CUT)

    async def test_without_memory_all_goes_through_the_disk_in_order(self, place: Home) -> None:
        place.write_config(memory_size="1MiB", disk_size="64MiB")
        content = random.Random(2).randbytes(SIZE)
        async with running(place) as (_, one), await connect(place, "ext/a") as disk:
            await disk.pwrite(content, offset=0)
            await asyncio.gather(
                *(disk.pwrite(content[at : at + BLOCK], offset=at) for at in range(0, MIB, BLOCK))
            )
            status = await one.until("ext", at_rest)
            assert status.state == "ready"
            assert image(place.records("ext", status.end_lsn), 0, SIZE) == content
            folders = {path.parents[2].name for path in place.path.glob("spool/ext/*/*.seg")}
            assert folders == {"spool"}

    async def test_the_files_of_the_spool_are_nobody_elses(self, place: Home) -> None:
        async with running(place), await connect(place, "ext/a") as disk:
            await disk.pwrite(b"x" * 512, offset=0)
            for path in place.memory.rglob("*"):
                assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


class TestSystemd:
    def test_it_is_told_when_we_are_up_that_we_live_and_that_we_go(self, place: Home) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(place.path / "notify"))
            systemd.settimeout(20)
            environment = {
                **os.environ,
                "NOTIFY_SOCKET": str(place.path / "notify"),
                "WATCHDOG_USEC": "100000",
            }
            with process([*COMMAND, place.config], place.log, environment=environment) as child:
                heard = [systemd.recv(4096).decode() for _ in range(4)]
                child.terminate()
                while "STOPPING=1" not in heard:
                    heard.append(systemd.recv(4096).decode())
                assert child.wait() == 0
        assert heard[0] == f"READY=1\nSTATUS=serving {place.path}/nbd"
        assert heard[1:4] == ["WATCHDOG=1"] * 3


class TestSockets:
    def test_mode_and_group_are_those_of_the_config(self, place: Home) -> None:
        place.write_config(mode="0640")
        name = grp.getgrgid(os.getgid()).gr_name
        text = place.config.read_text().replace(
            "socket_mode", f'socket_group = "{name}"\nsocket_mode'
        )
        place.config.write_text(text)
        with splitter(place) as child:
            found = (place.path / "nbd").stat()
            assert stat.S_IMODE(found.st_mode) == 0o640
            assert found.st_gid == os.getgid()
            assert stat.S_IMODE(place.control.stat().st_mode) == 0o600
            assert stop(child) == 0

    def test_a_socket_left_over_from_a_dead_one_is_no_obstacle(self, place: Home) -> None:
        with splitter(place) as child:
            child.kill()
            child.wait()
        assert (place.path / "nbd").exists()
        with splitter(place):
            pass


class TestControl:
    async def test_a_libvirt_disk_from_its_declaration_to_its_end(self, place: Home) -> None:
        """An NBD client plays QEMU's mirror job, the test plays the agent."""
        async with running(place) as (child, one):
            hello = await one.ask(lambda n: Hello(id=n), HelloAnswer)
            assert hello.pid == child.pid
            opened = await one.ask(
                lambda n: OpenStream(id=n, group="vm", above_ordinal=6, reason="first"),
                StreamOpened,
            )
            assert opened.ordinal == 7
            declared = await one.ask(
                lambda n: DeclareDisk(
                    id=n, group="vm", disk="vm-vda", size=MIB, instance=uuid_text(1)
                ),
                DiskDeclared,
            )
            await one.ask(
                lambda n: SyncBegin(id=n, group="vm", disk="vm-vda", reason="first"), Done
            )
            await one.ask(
                lambda n: AppendDomainXml(id=n, group="vm", domain="vm", xml="<domain/>"), Done
            )
            begun = await one.until("vm", lambda group: group.disks[0].state == "syncing")
            mirror = await connect(place, begun.disks[0].export)
            await mirror.pwrite(b"s" * MIB, offset=0)
            with pytest.raises(ReplicatorError, match="no FLUSH"):
                await one.ask(lambda n: Ready(id=n, group="vm", disk="vm-vda", connection=1), Done)
            await mirror.flush()
            flushed = await one.until("vm", lambda group: group.disks[0].state == "flushed")
            assert flushed.state == "syncing"
            connection = flushed.disks[0].flushed_by
            await one.ask(
                lambda n: Ready(id=n, group="vm", disk="vm-vda", connection=connection), Done
            )
            await one.until("vm", lambda group: group.state == "ready")
            await mirror.pwrite(b"g" * BLOCK, offset=0)
            marked = await one.ask(
                lambda n: Mark(id=n, group="vm", label="gold", kind="application"), Marked
            )
            await mirror.flush()
            await mirror.disconnect()
            await one.until("vm", lambda group: group.state == "suspended")
            await one.ask(
                lambda n: CloseStream(id=n, group="vm", reason="shut off", final_cut=True), Done
            )
            closed = await one.until("vm", lambda group: group.state == "closed")
        records = place.records("vm", closed.end_lsn)
        types = [RecordType(record.type).name for record in records]
        assert types == (
            ["SYNC_BEGIN", "DOMAIN_XML", "WRITE", "SYNC_END", "CUT", "WRITE", "CUT", "CUT"]
        )
        assert records[0].disk == declared.index
        assert body_of(records[1]) == DomainXml(domain="vm", xml="<domain/>")
        labelled = body_of(records[6])
        assert isinstance(labelled, Cut)
        assert (labelled.label, records[6].time_ns) == ("gold", marked.time_ns)

    async def test_eject_ends_the_connections_and_not_the_guest(self, place: Home) -> None:
        async with running(place) as (_, one):
            disk = await connect(place, "ext/a")
            await disk.pwrite(b"x" * 512, offset=0)
            await one.ask(lambda n: DropConnections(id=n, group="ext"), Done)
            with pytest.raises(UnreachableError):
                await disk.flush()
            disk.abort()
            assert (await one.until("ext", lambda _: True)).state == "ready"

    async def test_refusals_name_the_error(self, place: Home) -> None:
        async with running(place) as (_, one):
            with pytest.raises(NotFoundError):
                await one.ask(lambda n: Mark(id=n, group="nope"), Marked)
            with pytest.raises(UsageError, match="config file"):
                await one.ask(
                    lambda n: DeclareDisk(
                        id=n, group="ext", disk="c", size=MIB, instance=uuid_text(1)
                    ),
                    DiskDeclared,
                )
            with pytest.raises(UsageError):
                await one.ask(lambda n: Resync(id=n, group="vm"), Done)
            with pytest.raises(NotFoundError):
                await one.ask(lambda n: SyncBegin(id=n, group="vm", disk="x", reason=""), Done)
            with pytest.raises(ReplicatorError) as caught:
                await one.ask(lambda n: Mark(id=n, group="vm"), Marked)
            assert caught.value.name == "no-point"

    async def test_an_idle_splitter_is_heard_all_the_same(self, place: Home) -> None:
        async with running(place) as (_, one):
            heard = await one.heard(4)
            held = [status.groups[0].held_until_ns for status in heard]
            assert held == sorted(held)
            assert held[0] < held[-1]
            assert len({status.groups[0].end_lsn for status in heard}) == 1

    async def test_a_subscriber_that_does_not_read_is_felt_by_nobody(self, place: Home) -> None:
        async with running(place) as (child, one):
            with socket.socket(socket.AF_UNIX) as stopped:
                stopped.connect(str(place.control))
                # Orders without end, whose answers nobody takes, and statuses on top.
                stopped.setblocking(False)
                stopped.send(b'{"id":1,"do":"subscribe"}\n')
                await ask_until_nobody_listens(stopped)
                before = memory_kib(child.pid)
                async with await connect(place, "ext/a") as disk:
                    for number in range(2000):
                        await disk.pwrite(b"x" * 512, offset=number * 512)
                status = await one.until("ext", lambda group: group.bytes == 2000 * 512)
                assert status.state == "ready"
                assert memory_kib(child.pid) - before < 2 * 1024
                stopped.setblocking(True)
                heard = b""
                while b'"bytes":1024000' not in heard:
                    heard += stopped.recv(1 << 20)
                assert b'"id":1' in heard

    @pytest.mark.parametrize(
        "nonsense",
        [b"\x00\xff\n", b"{}\n", b"[1,2]\n", b'{"id":1,"do":"explode"}\n', b'{"id":"x"}\n'],
    )
    async def test_nonsense_is_answered_and_costs_nothing(
        self, place: Home, nonsense: bytes
    ) -> None:
        with splitter(place):
            async with control(place) as (reader, writer):
                writer.write(nonsense + b'{"id":7,"do":"hello"}\n')
                assert b'"usage"' in await reader.readline()
                assert b'"id":7' in await reader.readline()

    async def test_a_line_without_end_ends_the_connection(self, place: Home) -> None:
        async with running(place) as (_, one):
            async with control(place) as (reader, writer):
                writer.write(b"x" * (LINE_BYTES_MAX + 2))
                assert await hang_up(reader)
            assert (await one.until("ext", lambda _: True)).state == "ready"

    async def test_too_many_connections_are_hung_up_on(self, place: Home) -> None:
        with splitter(place):
            async with AsyncExitStack() as stack:
                answers = []
                for _ in range(20):
                    reader, writer = await stack.enter_async_context(control(place))
                    writer.write(b'{"id":1,"do":"hello"}\n')
                    answers.append(await answer(reader))
                assert [bool(line) for line in answers] == [True] * 16 + [False] * 4

    async def test_an_agent_that_was_stopped_gets_the_truth_of_now(self, place: Home) -> None:
        """SIGSTOP of a process that is subscribed; guests write meanwhile."""
        script = (
            "import socket,sys\n"
            "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            's.sendall(b\'{"id":1,"do":"subscribe"}\\n\'); print(len(s.recv(10)), flush=True)\n'
            "while s.recv(1<<20): pass\n"
        )
        with splitter(place) as child:
            stopped = await asyncio.create_subprocess_exec(
                COMMAND[0], "-c", script, str(place.control), stdout=subprocess.PIPE
            )
            assert stopped.stdout is not None
            try:
                assert await stopped.stdout.readline()
                os.kill(stopped.pid, signal.SIGSTOP)
                async with await connect(place, "ext/a") as disk:
                    for number in range(3000):
                        await disk.pwrite(b"x" * 512, offset=number * 512)
                os.kill(stopped.pid, signal.SIGCONT)
                async with agent(place) as one:
                    status = await one.until("ext", lambda group: group.bytes == 3000 * 512)
                assert status.state == "ready"
                assert stopped.returncode is None
            finally:
                stopped.kill()
                await stopped.communicate()
            assert child.poll() is None


async def answer(reader: asyncio.StreamReader) -> bytes:
    """A line; nothing if the splitter hung up."""
    try:
        return await reader.readline()
    except ConnectionResetError:
        return b""


async def hang_up(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def ask_until_nobody_listens(stopped: socket.socket) -> None:
    """Sends orders until the splitter takes no more of them."""
    asked = b'{"id":2,"do":"hello"}\n' * 500
    full = 0
    while full < 100:
        try:
            stopped.send(asked)
            full = 0
        except BlockingIOError:
            full += 1
        await asyncio.sleep(0.001)


def memory_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])
