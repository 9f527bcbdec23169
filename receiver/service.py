# SPDX-License-Identifier: Apache-2.0
"""The life of the receiver: start up, run, shut down (signals are captured in base.daemon).

Start: config, credentials, the lock of data_dir, room on its disk; then each group is recovered,
and only then is anything opened to the outside: control, metrics, the port for agents. A group
that cannot be recovered does not keep the others from starting (receiver.tasks.stop); nor does a
catalog or an audit that cannot be used: then orders that change something are refused.

Shutdown is the same in reverse, each step of it bounded: agents are told and what they had sent
is made durable, views close, the step under way in each group is waited for. Nothing of this has to
succeed: a kill -9 at any moment is recovered from at the next start, it only takes longer.

Concurrency: one event loop; blocking work is in the groups' lanes. The process runs at a lower
priority than a splitter on the same host: the guest comes first.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import structlog

from receiver.audit.chain import OpenEnd
from receiver.audit.watch import HistoryWatch
from receiver.catalog import Catalog
from receiver.counted.ages import Ages
from receiver.counted.keeper import CountedClock
from receiver.counted.machine import Machine, SystemMachine, boot_identity, runtime_dir_of
from receiver.data_dir.layout import (
    audit_dir,
    catalog_path,
    check_format,
    clock_path,
    groups_dir,
)
from receiver.data_dir.reserve import Reserve, Room
from receiver.group.group import GroupReplica
from receiver.group.worker import GroupWorker
from receiver.metrics import ReceiverSnapshot, registry_of
from receiver.orders.audit import fact_of
from receiver.orders.control import receiver_answers
from receiver.orders.describe import group_snapshot, group_state, group_status
from receiver.orders.leftovers import Leftovers
from receiver.orders.lookout import Lookout
from receiver.orders.recorder import Recorder
from receiver.orders.reloading import Reloading
from receiver.points.policy import policy_of
from receiver.points.values import GroupEvent
from receiver.session.listener import Listener
from receiver.tasks.beside import InThread
from receiver.tasks.errand import Errand
from receiver.views.open_views import Views
from replicator import __version__
from replicator.base.clock import Clock, SystemClock
from replicator.base.daemon import Daemon, hold_lock
from replicator.base.errors import NoSpaceError, UnreachableError
from replicator.base.logs import configure_logs
from replicator.base.mishaps import reason
from replicator.base.notify import Notifier
from replicator.base.storage import Storage, SystemStorage
from replicator.base.trouble import words_of
from replicator.config.environment import receiver_warnings, require_credentials
from replicator.config.receiver import ReceiverConfig, ReceiverGroupConfig, load_receiver
from replicator.control.describe import group_in_words
from replicator.control.server import serve_control, serve_metrics
from replicator.wire.credentials import Credentials
from replicator.wire.identity import server_context
from replicator.wire.transport import serve_wire

NICENESS = 5
STATUS_SECONDS = 5.0
RECOVERIES_AT_ONCE = 2
RECOVERY_PATIENCE_SECONDS = 60.0
"""A group whose recovery takes longer is started when that has ended, and keeps the others from
nothing meanwhile: its disk may not answer at all."""
RECOVERY_SHARE_SECONDS = 90
"""What a group's recovery may take before systemd gives the start up; each one that ends asks
for as much again."""

_log = structlog.get_logger(__name__)


async def run_receiver(config_file: Path, daemon: Daemon) -> None:
    """The whole life. Raises ReplicatorError, OSError with a file name."""
    config = load_receiver(config_file)
    section = config.receiver
    require_credentials(section)
    credentials = Credentials(server_context, section.ca, section.certificate, section.key)
    configure_logs()
    for warning in receiver_warnings(config):
        _log.warning("config.warning", text=warning)
    yield_the_cpu()
    storage, notifier = SystemStorage(), Notifier()
    storage.make_directory(section.data_dir.absolute())
    with hold_lock(section.data_dir / "lock", f"receiver {section.name}"):
        load = partial(load_receiver, config_file)
        async with started(config, credentials, storage, SystemClock(), notifier, load) as receiver:
            notifier.ready(receiver.status_line())
            _log.info("receiver.ready", name=section.name, port=receiver.port)
            async with daemon.serving(
                reload=receiver.reloading.by_signal, dump=receiver.told, notifier=notifier
            ):
                await receiver.run(daemon.stop, notifier)
            notifier.stopping()
            _log.info("receiver.stopping")
    _log.info("receiver.stopped")


def yield_the_cpu() -> None:
    """Splitters on this host go first. Threads made later inherit it."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))


class Receiver:
    """A receiver that is up. Made by `started`."""

    def __init__(
        self,
        reloading: Reloading,
        workers: dict[str, GroupWorker],
        views: Views,
        listener: Listener,
        storage: Storage,
        clock: Clock,
        counted: CountedClock,
        recorder: Recorder,
        credentials: Credentials,
        lookout: Lookout,
        reserve: Reserve,
        leftovers: Leftovers,
    ) -> None:
        self.port = 0
        self._leftovers = leftovers
        self.reloading = reloading
        self.workers = workers
        self._views = views
        self._listener = listener
        self._storage = storage
        self._clock = clock
        self._counted = counted
        self._recorder = recorder
        self._credentials = credentials
        self._lookout = lookout
        self.clock_errand = Errand("clock", counted.tend)
        self.reserve_errand = Errand("reserve", reserve.tend)

    async def run(self, stop: asyncio.Event, notifier: Notifier) -> None:
        """Until `stop` is set. Tells systemd meanwhile that the loop turns, and what it does."""
        interval = min(notifier.watchdog_interval_seconds or STATUS_SECONDS, STATUS_SECONDS)
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), interval)
            notifier.alive()
            notifier.status(self.status_line())
            self._recorder.note_heads()
            self._credentials.look(asyncio.get_running_loop().time())
            self._lookout.begin()
            self._leftovers.measure()
            self.tend()

    def tend(self) -> None:
        """The clock and the reserve. Every few seconds."""
        witnesses, monotonic_ns = self._listener.witnesses(), self._clock.monotonic_ns()
        self.clock_errand.begin(witnesses, monotonic_ns, self._ageing_out)
        self.reserve_errand.begin()

    def _ageing_out(self, before: Ages, after: Ages) -> int:
        return sum(
            worker.replica.keeping.ageing_out(worker.policy, before, after)
            for worker in self.workers.values()
            if worker.health.is_recovered
        )

    def status_line(self) -> str:
        """`3 groups: 1 damaged, 2 protected`."""
        states = Counter(group_state(worker) for worker in self.workers.values())
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        noun = "group" if len(self.workers) == 1 else "groups"
        return f"{len(self.workers)} {noun}{': ' if told else ''}{told}"

    def told(self) -> Iterator[dict[str, object]]:
        """The state, for the log."""
        yield {"version": __version__, "port": self.port, "refused": self._listener.refused.total()}
        now_ns = self._clock.utc_ns()
        for worker in self.workers.values():
            yield group_in_words(group_status(worker, now_ns))

    def snapshot(self) -> ReceiverSnapshot:
        """For /metrics."""
        now_ns = self._clock.utc_ns()
        return ReceiverSnapshot(
            name=self.reloading.config.receiver.name,
            version=__version__,
            groups=[
                group_snapshot(
                    worker,
                    now_ns,
                    views=self._views.count(name),
                    oldest_view_ns=self._views.oldest_ns(name),
                )
                for name, worker in self.workers.items()
            ],
            history_capacity_bytes=self.reloading.config.history.max_bytes,
            free_bytes=self._storage.free_bytes(self.reloading.config.receiver.data_dir),
            refused=dict(self._listener.refused),
            clock=self._counted.facts(),
            certificate_not_after_ns=self._credentials.not_after_ns,
        )


@asynccontextmanager
async def started(
    config: ReceiverConfig,
    credentials: Credentials,
    storage: Storage,
    clock: Clock,
    notifier: Notifier,
    load: Callable[[], ReceiverConfig],
    machine: Machine | None = None,
) -> AsyncIterator[Receiver]:
    """A receiver with its groups recovered and its sockets open; all of it is closed again at the
    end of the block, in reverse. data_dir exists, and its lock is the caller's. `load` reads the
    configuration anew, for a reload."""
    data_dir = config.receiver.data_dir.absolute()
    check_format(storage, data_dir)
    reserve = Reserve(storage, data_dir)
    reserve.prepare_start()
    async with AsyncExitStack() as closing:
        catalog, catalog_trouble = _open_catalog(catalog_path(data_dir))
        closing.callback(catalog.close)
        views = Views(groups_dir(data_dir), storage=storage, clock=clock, tls=credentials.tls)
        workers: dict[str, GroupWorker] = {}
        watch = HistoryWatch(storage)
        lookout = Lookout(watch, workers)
        recorder = Recorder(
            *(storage, audit_dir(data_dir), catalog, clock.utc_ns, watch),
            refuses=catalog_trouble,
            ends=lambda: _open_ends(workers),
            room=reserve,
        )
        closing.callback(recorder.close)  # once the workers have ended
        closing.push_async_callback(lookout.close)
        counted = CountedClock(storage, clock_path(data_dir), machine or _machine(config))
        closing.callback(counted.save)
        make = partial(
            _worker_of,
            catalog=catalog,
            storage=storage,
            clock=clock,
            counted=counted,
            recorder=recorder,
            room=reserve,
        )
        workers |= {group.name: make(config, group) for group in config.groups}
        closing.push_async_callback(_close_all, workers)
        closing.push_async_callback(views.close_all)
        late = await _bring_up(workers, views, notifier, counted)
        closing.push_async_callback(_give_up, late)
        agents: dict[str, Sequence[str]] = {group.name: group.agents for group in config.groups}
        listener = Listener(workers, agents)
        reloading = Reloading(
            *(config, load, workers, agents, views, credentials),
            make=make,
            bring_up=partial(_bring_up, views=views, notifier=notifier, counted=counted),
        )
        leftovers = Leftovers(
            *(storage, data_dir, workers, catalog, watch, counted),
            min_lock_ns=lambda: int(reloading.config.history.min_lock),
        )
        leftovers.measure()
        closing.push_async_callback(leftovers.close)
        recorder.import_from_catalog()
        await lookout.complete()
        recorder.note_heads()
        receiver = Receiver(
            *(reloading, workers, views, listener, storage, clock, counted, recorder),
            credentials,
            lookout,
            reserve,
            leftovers,
        )
        answers = receiver_answers(
            *(config.receiver.name, workers, views, agents),
            clock=clock,
            counted=counted,
            recorder=recorder,
            lookout=lookout,
            credentials=credentials,
            leftovers=leftovers,
            reloading=reloading,
            data_dir=data_dir,
            reserve=reserve,
        )
        control = await serve_control(
            config.receiver.control,
            answers,
            name=config.receiver.name,
            audit=lambda entry: recorder.record(fact_of(entry)),
        )
        closing.push_async_callback(control.close)
        closing.callback(_begin_closing, workers)
        if config.receiver.metrics.address is not None:
            registry = registry_of(receiver.snapshot)
            metrics = await serve_metrics(config.receiver.metrics.address, registry)
            closing.push_async_callback(metrics.close)
        server = await serve_wire(
            config.receiver.listen, credentials.tls, listener.serve, clock=clock
        )
        closing.push_async_callback(server.wait_closed)
        closing.callback(server.close, UnreachableError("the receiver is shutting down"))
        receiver.port = server.port
        receiver.tend()
        closing.push_async_callback(receiver.reserve_errand.ended)
        closing.push_async_callback(receiver.clock_errand.ended)
        yield receiver


def _worker_of(
    config: ReceiverConfig,
    group: ReceiverGroupConfig,
    *,
    catalog: Catalog,
    storage: Storage,
    clock: Clock,
    counted: CountedClock,
    recorder: Recorder,
    room: Room,
) -> GroupWorker:
    """One that has not touched a disk."""
    replica = GroupReplica(
        storage,
        clock,
        groups_dir(config.receiver.data_dir.absolute()) / group.name,
        group.name,
        catalog.group(group.name),
        age_clock=counted,
        notify=_event_logger(),
        fine_ns=int(config.history_of(group).fine_history),
        reached=partial(recorder.reached, group.name),
        beside=InThread(group.name),
    )
    return GroupWorker(
        replica,
        receiver=config.receiver.name,
        policy=policy_of(config.history_of(group)),
        scrub=config.scrub,
        clock=clock,
        room=room,
    )


def _machine(config: ReceiverConfig) -> Machine:
    return SystemMachine(boot_identity(runtime_dir_of(config.receiver.control)))


def _newest_stamp_ns(workers: dict[str, GroupWorker], below_ns: int) -> int | None:
    """Of all points, the latest that is not above."""
    stamps = [
        worker.replica.known.newest_stamp_ns(below_ns)
        for worker in workers.values()
        if worker.health.is_recovered
    ]
    return max((stamp for stamp in stamps if stamp is not None), default=None)


def _open_ends(workers: dict[str, GroupWorker]) -> dict[str, OpenEnd]:
    """Of the groups that could be read, and are whole."""
    ends = {
        name: each.replica.known.open_end
        for name, each in workers.items()
        if each.health.is_recovered and each.health.stopped is None
    }
    return {name: end for name, end in ends.items() if end is not None}


async def _bring_up(
    workers: dict[str, GroupWorker], views: Views, notifier: Notifier, counted: CountedClock
) -> list[asyncio.Task[None]]:
    """Recovers the groups, a few at a time, and starts them once the clock by which they age has
    begun; what stops one does not reach another. Those whose recovery takes longer than a start may
    wait are returned: they come up when they can."""
    turn = asyncio.Semaphore(RECOVERIES_AT_ONCE)

    async def recovering(worker: GroupWorker) -> asyncio.Task[None]:
        async with turn:
            notifier.extend_start(RECOVERY_SHARE_SECONDS)
            recovery = asyncio.create_task(worker.recover())
            try:
                await asyncio.wait([recovery], timeout=RECOVERY_PATIENCE_SECONDS)
            except asyncio.CancelledError:
                recovery.cancel()
                raise
        if not recovery.done():
            _log.warning("recovery.goes_on", group=worker.name)
        return recovery

    async def up(worker: GroupWorker, recovery: asyncio.Task[None]) -> None:
        await recovery
        await _clear_views(views, worker)
        worker.start()

    turns = [asyncio.create_task(recovering(worker)) for worker in workers.values()]
    coming: list[asyncio.Task[None]] = []
    try:
        recoveries = [await each for each in turns]
        counted.begin(partial(_newest_stamp_ns, workers))
        pairs = list(zip(workers.values(), recoveries, strict=True))
        coming = [asyncio.create_task(up(*each)) for each in pairs]
        for task, recovery in zip(coming, recoveries, strict=True):
            if recovery.done():
                await task
        return [task for task in coming if not task.done()]
    except asyncio.CancelledError:
        await _give_up(coming)
        raise
    finally:
        for each in turns:
            each.cancel()
        await asyncio.gather(*turns, return_exceptions=True)


async def _give_up(late: list[asyncio.Task[None]]) -> None:
    for task in late:
        task.cancel()
    await asyncio.gather(*late, return_exceptions=True)


async def _clear_views(views: Views, worker: GroupWorker) -> None:
    """A supervision: what lies in `views/` keeps nothing from starting."""
    try:
        left = await worker.aside.run(views.clear_stale, worker.name)
    except Exception as error:  # noqa: BLE001
        _log.error("views.not_cleared", group=worker.name, reason=words_of(error).message)
        return
    if left:
        _log.warning("views.odd_entries", group=worker.name, names=", ".join(left[:8]))


async def _close_all(workers: dict[str, GroupWorker]) -> None:
    for worker in workers.values():
        await worker.close()


def _begin_closing(workers: dict[str, GroupWorker]) -> None:
    for worker in workers.values():
        worker.begin_closing()


def _open_catalog(path: Path) -> tuple[Catalog, str]:
    """The catalog, and why orders have to be refused: one that cannot be opened is an index that
    nobody misses until something has to be ordered, so another one does in its place."""
    try:
        return Catalog.open(path), ""
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise NoSpaceError(f"{path}: no space left on the disk") from error
        why = reason(error) if isinstance(error, OSError) else str(error)
        trouble = f"the catalog {path} cannot be opened: {why}"
        _log.error(
            "catalog.unusable",
            reason=trouble,
            hint="it can be moved away: it is made anew from the histories",
        )
        return Catalog.open(Path(":memory:")), trouble


def _event_logger() -> Callable[[GroupEvent], None]:
    """Logs what a group has to tell. What is said again and again about a budget is logged when
    it changes."""
    over_budget = ""

    def log(event: GroupEvent) -> None:
        nonlocal over_budget
        if event.name == "retention.over_budget":
            why = str(event.fields.get("why", ""))
            if why == over_budget:
                return
            over_budget = why
        _log.warning(event.name, group=event.group, **event.fields)

    return log
