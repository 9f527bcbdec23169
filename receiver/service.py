# SPDX-License-Identifier: Apache-2.0
"""The life of the receiver: start up, run, shut down (signals are captured in base.daemon).

Start: config, credentials, the lock of data_dir, room on its disk; then each group is recovered,
and only then is anything opened to the outside: control, metrics, the port for agents. A group
that is damaged does not keep the others from starting; it is shown as damaged, with file and
offset, and refuses its agent.

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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import structlog

from receiver.audit.recorder import Recorder
from receiver.audit.watch import HistoryWatch
from receiver.catalog import Catalog
from receiver.control import ReceiverService
from receiver.data_dir import audit_dir, catalog_path, check_format, check_room, groups_dir
from receiver.describe import group_snapshot, group_state, group_status
from receiver.group import GroupReplica
from receiver.history.batches import Segment
from receiver.listener import Listener
from receiver.metrics import ReceiverSnapshot, registry_of
from receiver.policy import policy_of
from receiver.values import GroupEvent
from receiver.views import Views
from receiver.worker import GroupWorker
from replicator import __version__
from replicator.base.clock import Clock, SystemClock
from replicator.base.daemon import Daemon, hold_lock, nothing_to_reload
from replicator.base.errors import NoSpaceError, ReplicatorError, UnreachableError
from replicator.base.logs import configure_logs
from replicator.base.notify import Notifier
from replicator.base.storage import Storage, SystemStorage
from replicator.config.environment import receiver_warnings, require_credentials
from replicator.config.receiver import ReceiverConfig, load_receiver
from replicator.control.describe import group_in_words
from replicator.control.server import serve_metrics, serve_receiver_control
from replicator.wire.credentials import Credentials
from replicator.wire.identity import server_context
from replicator.wire.transport import serve_wire

NICENESS = 5
STATUS_SECONDS = 5.0
RECOVERIES_AT_ONCE = 2
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
        async with started(config, credentials, storage, SystemClock(), notifier) as receiver:
            notifier.ready(receiver.status_line())
            _log.info("receiver.ready", name=section.name, port=receiver.port)
            async with daemon.serving(
                reload=nothing_to_reload, dump=receiver.told, notifier=notifier
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
        config: ReceiverConfig,
        workers: dict[str, GroupWorker],
        views: Views,
        listener: Listener,
        storage: Storage,
        clock: Clock,
        recorder: Recorder,
        credentials: Credentials,
    ) -> None:
        self.port = 0
        self._config = config
        self.workers = workers
        self._views = views
        self._listener = listener
        self._storage = storage
        self._clock = clock
        self._recorder = recorder
        self._credentials = credentials

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
            name=self._config.receiver.name,
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
            history_capacity_bytes=self._config.history.max_bytes,
            free_bytes=self._storage.free_bytes(self._config.receiver.data_dir),
            refused=dict(self._listener.refused),
            certificate_not_after_ns=self._credentials.not_after_ns,
        )


@asynccontextmanager
async def started(
    config: ReceiverConfig,
    credentials: Credentials,
    storage: Storage,
    clock: Clock,
    notifier: Notifier,
) -> AsyncIterator[Receiver]:
    """A receiver with its groups recovered and its sockets open; all of it is closed again at the
    end of the block, in reverse. data_dir exists, and its lock is the caller's."""
    data_dir = config.receiver.data_dir.absolute()
    check_format(storage, data_dir)
    check_room(storage, data_dir)
    async with AsyncExitStack() as closing:
        catalog = _open_catalog(catalog_path(data_dir))
        closing.callback(catalog.close)
        views = Views(groups_dir(data_dir), storage=storage, clock=clock, tls=credentials.tls)
        workers: dict[str, GroupWorker] = {}
        watch = HistoryWatch(storage, lambda: _sealed(workers))
        recorder = Recorder(storage, audit_dir(data_dir), catalog, clock.utc_ns, watch)
        closing.callback(recorder.close)  # once the workers have ended
        workers |= await _recover_groups(config, catalog, storage, clock, notifier, closing)
        closing.push_async_callback(views.close_all)
        for worker in workers.values():
            views.clear_stale(worker.name)
            worker.start()
        agents = {group.name: group.agents for group in config.groups}
        listener = Listener(workers, agents)
        recorder.import_from_catalog()
        recorder.note_heads()
        receiver = Receiver(config, workers, views, listener, storage, clock, recorder, credentials)
        service = ReceiverService(
            config.receiver.name, workers, views, recorder, clock, agents, credentials
        )
        control = await serve_receiver_control(
            config.receiver.control, service, name=config.receiver.name, audit=service.audit
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
        yield receiver


async def _recover_groups(
    config: ReceiverConfig,
    catalog: Catalog,
    storage: Storage,
    clock: Clock,
    notifier: Notifier,
    closing: AsyncExitStack,
) -> dict[str, GroupWorker]:
    """All groups of the config, a few at a time; damaged ones are among them, and say so."""
    turn = asyncio.Semaphore(RECOVERIES_AT_ONCE)
    workers: dict[str, GroupWorker] = {}
    for group in config.groups:
        replica = GroupReplica(
            storage,
            clock,
            groups_dir(config.receiver.data_dir.absolute()) / group.name,
            group.name,
            catalog.group(group.name),
            notify=_event_logger(),
            fine_ns=int(config.history_of(group).fine_history),
        )
        worker = GroupWorker(
            replica,
            receiver=config.receiver.name,
            policy=policy_of(config.history_of(group)),
            scrub=config.scrub,
            clock=clock,
        )
        workers[group.name] = worker
        closing.push_async_callback(worker.close)

    async def recover(worker: GroupWorker) -> None:
        async with turn:
            notifier.extend_start(RECOVERY_SHARE_SECONDS)
            await worker.recover()

    recoveries = [asyncio.create_task(recover(worker)) for worker in workers.values()]
    try:
        for recovery in recoveries:
            await recovery
    finally:
        for recovery in recoveries:
            recovery.cancel()
        await asyncio.gather(*recoveries, return_exceptions=True)
    return workers


def _sealed(workers: dict[str, GroupWorker]) -> dict[str, list[Segment]]:
    """What is sealed of the history of each group that could be read."""
    return {name: each.replica.sealed for name, each in workers.items() if each.is_recovered}


def _begin_closing(workers: dict[str, GroupWorker]) -> None:
    for worker in workers.values():
        worker.begin_closing()


def _open_catalog(path: Path) -> Catalog:
    try:
        return Catalog.open(path)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise NoSpaceError(f"{path}: no space left on the disk") from error
        raise ReplicatorError(
            f"{path}: the catalog cannot be opened: {error}",
            hint="it can be moved away: it is made anew from the histories",
        ) from error


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
