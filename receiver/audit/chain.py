# SPDX-License-Identifier: Apache-2.0
"""One entry of the audit, and what makes a row of them a chain. No I/O.

An entry is a line: a JSON object whose last two fields are

    "previous": the digest of the entry before (zeroes for the first), "digest": BLAKE2b-256, hex

The digest covers the bytes of the line in front of `,"digest":`, as they stand: nothing has to be
encoded again to check it, and a shell can do it:

    tail -n 1 FILE | sed 's/,"digest":"[0-9a-f]*"}$//' | tr -d '\\n' | b2sum -l 256

So an entry stands for all before it. One that was changed fails its own digest; one that was
removed, put in or moved breaks the link of the next, and the row of sequence numbers. What the
chain alone cannot show is that its *end* was cut off: for that its head is kept in the catalog and
in the daemon's own log, and can be kept by anybody (`audit verify --expect-head`).

`Walk` checks a row and goes on behind each break, so that one change is one break, not a thousand.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

import msgspec

from replicator.base.clock import rfc3339

DIGEST_BYTES = 32
FIRST_PREVIOUS = bytes(DIGEST_BYTES).hex()
LINE_BYTES_MAX = 1 << 20
"""An argument is a request's body, at most 64 KiB; each byte of it may take six in JSON."""

_SEAL = re.compile(rb',"digest":"([0-9a-f]{64})"\}\n')
_SEAL_BYTES = len(b',"digest":""}\n') + 2 * DIGEST_BYTES
_MESSAGE_CHARS = 4096

BREAK_ORDER = "audit break"
CUT_ORDER = "audit cut"
HEADS_ORDER = "history heads"


class Head(msgspec.Struct, frozen=True):
    """How far a group's history was sealed: up to position `end`, with this digest (hex)."""

    end: int
    digest: str


class OpenEnd(msgspec.Struct, frozen=True):
    """How far a group has come: its history is durable up to `position`, its newest durable point
    is number `point`."""

    position: int
    point: int
    generation: int


class Seen(msgspec.Struct, frozen=True):
    """What is new of the histories, by group: see Entry."""

    heads: dict[str, Head] = {}
    rewritten: dict[str, dict[int, str]] = {}
    ends: dict[str, OpenEnd] = {}


NOTHING_SEEN = Seen()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """An order that somebody gave, or a fact about the audit itself; and what came of it.

    `outcome` is "started" (written before the order is carried out), "done", "cancelled", or the
    name of an error. uid and pid are null for what no person ordered. `heads` holds the histories
    that were sealed further than when the entry before was written; `rewritten` the segments that
    a compaction has made since, by their first position, with their own digests; `ends` how far the
    groups have come that have moved."""

    sequence: int
    time: str
    time_ns: int
    order: str
    object: str
    argument: str
    uid: int | None
    pid: int | None
    outcome: str
    message: str
    heads: dict[str, Head] = {}
    rewritten: dict[str, dict[int, str]] = {}
    ends: dict[str, OpenEnd] = {}
    previous: str


@dataclass(frozen=True, slots=True)
class Fact:
    """What an entry is to say."""

    order: str
    object: str = ""
    argument: str = ""
    uid: int | None = None
    pid: int | None = None
    outcome: str = "done"
    message: str = ""


@dataclass(frozen=True, slots=True)
class Break:
    """A place where the chain does not hold."""

    file: str
    offset: int
    problem: str

    def __str__(self) -> str:
        return f"{self.file}: offset {self.offset}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Link:
    """The end of a chain: the sequence and digest of its last entry."""

    sequence: int = 0
    digest: str = FIRST_PREVIOUS


def pack_entry(fact: Fact, time_ns: int, seen: Seen, before: Link) -> bytes:
    """The line that follows `before`."""
    entry = Entry(
        sequence=before.sequence + 1,
        time=rfc3339(time_ns),
        time_ns=time_ns,
        order=fact.order,
        object=_sound(fact.object),
        argument=_sound(fact.argument),
        uid=fact.uid,
        pid=fact.pid,
        outcome=fact.outcome,
        message=_sound(fact.message)[:_MESSAGE_CHARS],
        heads=seen.heads,
        rewritten=seen.rewritten,
        ends=seen.ends,
        previous=before.digest,
    )
    body = msgspec.json.encode(entry)[:-1]
    line = body + b',"digest":"' + digest_of(body).encode() + b'"}\n'
    assert len(line) <= LINE_BYTES_MAX
    return line


def is_sound(line: bytes) -> bool:
    """Whether a line holds its own digest, whatever it says."""
    seal = _SEAL.fullmatch(line[-_SEAL_BYTES:])
    return seal is not None and digest_of(line[:-_SEAL_BYTES]) == seal[1].decode()


def file_name(sequence: int) -> str:
    """Of the file whose first entry has that number."""
    return f"{sequence:016d}.jsonl"


def digest_of(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=DIGEST_BYTES).hexdigest()


def _sound(text: str) -> str:
    """What cannot be written as UTF-8 (half a surrogate in a file name) is replaced."""
    return text.encode(errors="replace").decode()


@dataclass(slots=True)
class Walk:
    """Checks lines in order, and remembers every break. `last` is the link that the next line
    must follow, `highest` the highest number seen."""

    last: Link = field(default_factory=Link)
    highest: int = 0
    entries: int = 0
    breaks: list[Break] = field(default_factory=list)
    _unread: int = 0  # lines behind `last` that could not be read

    def take(self, line: bytes, file: str, offset: int) -> Entry | None:
        """The entry, if it can be read at all."""
        self.entries += 1
        seal = _SEAL.fullmatch(line[-_SEAL_BYTES:])
        body = line[:-_SEAL_BYTES]
        entry = _entry(body) if seal is not None else None
        if seal is None or entry is None:
            self._found(file, offset, f"not an entry of the audit ({len(line)} bytes)")
            self._unread += 1
            return None
        digest = seal[1].decode()
        problem = self._problem(entry, is_digest_good=digest_of(body) == digest)
        if problem:
            self._found(file, offset, problem)
        self.last = Link(entry.sequence, digest)
        self.highest = max(self.highest, entry.sequence)
        self._unread = 0
        return entry

    def _problem(self, entry: Entry, *, is_digest_good: bool) -> str:
        """Behind lines that could not be read, any of their numbers may be next."""
        last, number = self.last.sequence, entry.sequence
        if not is_digest_good:
            return f"entry {number} fails its digest"
        if not last < number <= last + 1 + self._unread:
            return _missing(last, number)
        if not self._unread and entry.previous != self.last.digest:
            return f"entry {number} does not follow the entry before it"
        return ""

    def expect_end(self, kept: Link, file: str, offset: int) -> None:
        """`kept` was the chain's end, at least. Entries that were cut off are a break, and their
        numbers are not given again: it lies where the entry behind them will, and is found there
        later."""
        highest = max(kept.sequence, self.highest, self.last.sequence + self._unread)
        if highest > self.last.sequence:
            if highest > self.last.sequence + self._unread:
                problem = _missing(self.last.sequence, highest + 1)
                self._found(file_name(highest + 1), 0, problem)
            self.last = Link(highest, self.last.digest)
        elif kept.sequence == highest and kept.digest != self.last.digest:
            self._found(file, offset, f"entry {highest} is not the one that was written")

    def _found(self, file: str, offset: int, problem: str) -> None:
        self.breaks.append(Break(file, offset, problem))


def _entry(body: bytes) -> Entry | None:
    try:
        return msgspec.json.decode(body + b"}", type=Entry)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _missing(last: int, found: int) -> str:
    if found <= last + 1:
        return f"entry {found} stands behind entry {last}"
    if found == last + 2:
        return f"entry {last + 1} is missing"
    return f"entries {last + 1} to {found - 1} are missing"
