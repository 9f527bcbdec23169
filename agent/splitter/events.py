# SPDX-License-Identifier: Apache-2.0
"""Log lines on stderr, an event each, that can never hold the event loop.

Whoever reads our stderr may stop reading; a write to a full pipe would then hold every guest. So
lines are handed to a thread; what it cannot get rid of is counted and dropped, and said later.

    2026-03-01T02:03:04.000005Z error event="continuity lost" group=web reason="the spool is full"
"""

from __future__ import annotations

import logging
import sys
import threading
from queue import SimpleQueue
from typing import Final, TextIO

from replicator.base.clock import rfc3339

LINES_MAX: Final = 1000
FLUSH_SECONDS: Final = 1.0

_PLAIN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class EventFormatter(logging.Formatter):
    """One line: time, level, the constant message, then the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"event": record.getMessage()}
        fields.update({key: value for key, value in vars(record).items() if key not in _PLAIN})
        words = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
        line = f"{rfc3339(int(record.created * 1e9))} {record.levelname.lower()} {words}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class EventHandler(logging.Handler):
    """`flush` and `close` wait for the lines that are left, but not for ever."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.setFormatter(EventFormatter())
        self._stream = stream
        self._lines: SimpleQueue[str | threading.Event | None] = SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines.qsize() >= LINES_MAX:
            self._dropped += 1
            return
        if self._dropped:
            self._lines.put(f'warning event="log lines dropped" count={self._dropped}')
            self._dropped = 0
        self._lines.put(self.format(record))

    def flush(self) -> None:
        """Waits until the lines up to now are written, FLUSH_SECONDS at most."""
        written = threading.Event()
        self._lines.put(written)
        if self._thread.is_alive():
            written.wait(FLUSH_SECONDS)

    def close(self) -> None:
        self._lines.put(None)
        self._thread.join(FLUSH_SECONDS)
        super().close()

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            if isinstance(line, threading.Event):
                line.set()
                continue
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except OSError:  # nobody reads any more; nobody is left to tell
                return


def log_events(level: int = logging.INFO) -> EventHandler:
    """All log lines of this process from here on."""
    handler = EventHandler(sys.stderr)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level)
    return handler


def _quoted(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    escaped = text.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{escaped}"'
