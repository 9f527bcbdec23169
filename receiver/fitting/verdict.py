# SPDX-License-Identifier: Apache-2.0
"""What follows from how a group's parts fit: one case for each part. No I/O.

    go on    they fit
    scrub    an image may be another than the one we wrote: it is read back at once
    mend     what is gone is said, the stream is closed and a sync follows; numbers go on above all
             that were ever given
    stop     nothing is applied, nothing is served that is not proven, an agent is refused. The
             operator puts the right part back, or says `history accept` where that is possible

A part is judged by itself: the history by E1 (and where there is none, by E2 and E3), each image,
the inbox, the sums, what is kept of single writes. E1 speaks first. Only a *whole* folder that was
set back fits itself by E1 while catalog and audit have seen more: that is mended, not stopped for.

Invariants (each enumerated by the test): every situation has exactly one case; nothing goes on with
a history that E1 reaches beyond; without E1 nothing goes on against E2 or E3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from receiver.points.evidence import Evidence, ImageState, InboxState, Line

T = TypeVar("T")


class Action(Enum):
    GO_ON = "go on"
    SCRUB = "scrub"
    MEND = "mend"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Case(Generic[T]):
    """A row. `prose` goes on from "group NAME: "; `put_back` says what would set it right;
    `acceptable`: `history accept` goes on without that."""

    label: str
    action: Action
    prose: str
    fits: Callable[[T], bool]
    put_back: str = ""
    acceptable: bool = True


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that applies. `what`: the image it is about, else empty."""

    label: str
    action: Action
    prose: str
    put_back: str = ""
    acceptable: bool = True
    what: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    findings: tuple[Finding, ...]

    def of(self, action: Action) -> list[Finding]:
        return [each for each in self.findings if each.action is action]

    def has(self, label: str) -> bool:
        return any(each.label == label for each in self.findings)

    @property
    def stops(self) -> list[Finding]:
        return self.of(Action.STOP)


def _no_line(e: Evidence) -> bool:
    return e.line is Line.ABSENT


def _held(e: Evidence) -> bool:
    return e.line is Line.HELD and not e.holds_newer


def _may_hold(e: Evidence) -> bool:
    return _no_line(e) and not e.is_empty and not e.seen_beyond


def _unspoken(e: Evidence) -> bool:
    """No E1, and E2 and E3 say nothing against the history."""
    return _no_line(e) and not e.seen_beyond and not e.holds_newer and not e.is_empty


HISTORY: tuple[Case[Evidence], ...] = (
    Case(
        "fits",
        Action.GO_ON,
        "history and replica belong together",
        lambda e: _held(e) and not e.seen_beyond,
    ),
    Case(
        "set back",
        Action.MEND,
        "the whole group was set back: replica and history fit each other, and catalog or audit"
        " have seen more",
        lambda e: _held(e) and e.seen_beyond,
    ),
    Case(
        "foreign",
        Action.STOP,
        "the folder `disks` is another group's",
        lambda e: e.line is Line.FOREIGN,
        put_back="put this group's own folders back",
        acceptable=False,
    ),
    Case(
        "history older",
        Action.STOP,
        "its history ends before what its replica holds: an older one was put back, or its newest"
        " part is lost",
        lambda e: e.line is Line.BEYOND,
        put_back="put the newer history back",
    ),
    Case(
        "other line",
        Action.STOP,
        "its history is another than the one that its replica was made by",
        lambda e: e.line is Line.OTHER,
        put_back="put back the history that belongs to the replica",
    ),
    Case(
        "new",
        Action.GO_ON,
        "nothing is there yet",
        lambda e: _no_line(e) and e.is_empty and not e.seen_beyond,
    ),
    Case(
        "begun anew",
        Action.MEND,
        "nothing of it is there any more: it begins anew, and its numbers go on",
        lambda e: _no_line(e) and e.is_empty and e.seen_beyond,
    ),
    Case(
        "seen beyond",
        Action.STOP,
        "its history and inbox end before what catalog or audit have seen of it, and nothing says"
        " what its replica holds",
        lambda e: _no_line(e) and not e.is_empty and e.seen_beyond,
        put_back="put the newer history and inbox back",
    ),
    Case(
        "holds newer",
        Action.STOP,
        "its replica holds what its history only comes to later: an older history, or another"
        " image, was put back",
        lambda e: e.holds_newer and (_may_hold(e) or e.line is Line.HELD),
        put_back="put history and replica of the same time back",
    ),
    Case(
        "vouched for anew",
        Action.SCRUB,
        "`disks/applied` is gone or cannot be read: its images are read back before they are"
        " believed",
        lambda e: _unspoken(e) and e.was_vouched,
    ),
    Case(
        "older version's",
        Action.GO_ON,
        "it was written by a version without `disks/applied`, and nothing speaks against it",
        lambda e: _unspoken(e) and not e.was_vouched,
    ),
)

IMAGE: tuple[Case[ImageState], ...] = (
    Case("image fits", Action.GO_ON, "is the one we wrote", lambda s: s is ImageState.FITS),
    Case(
        "image exchanged",
        Action.SCRUB,
        "is another file than the one we wrote: it is read back before it is believed",
        lambda s: s is ImageState.EXCHANGED,
    ),
    Case(
        "image missing",
        Action.STOP,
        "is missing",
        lambda s: s is ImageState.MISSING,
        put_back="put it back",
    ),
    Case(
        "image of another size",
        Action.STOP,
        "its history says",
        lambda s: s is ImageState.OTHER_SIZE,
        put_back="put the right one back",
    ),
)

INBOX: tuple[Case[InboxState], ...] = (
    Case("inbox fits", Action.GO_ON, "holds what is not applied", lambda s: s is InboxState.FITS),
    Case(
        "inbox older",
        Action.MEND,
        "the inbox ends before what is applied: whatever was acknowledged behind that is lost",
        lambda s: s is InboxState.OLDER,
    ),
    Case(
        "inbox missing",
        Action.MEND,
        "the inbox of the open stream is gone: whatever was acknowledged and not applied is lost",
        lambda s: s is InboxState.MISSING,
    ),
    Case(
        "inbox gap",
        Action.STOP,
        "what was acknowledged is missing: the inbox begins behind what comes next",
        lambda s: s is InboxState.GAP,
        put_back="put the missing part of the inbox back",
    ),
    Case(
        "inbox headless",
        Action.STOP,
        "what was acknowledged is missing: the inbox holds a stream without its beginning",
        lambda s: s is InboxState.HEADLESS,
        put_back="put the missing part of the inbox back",
    ),
    Case(
        "begun batch gone",
        Action.STOP,
        "a batch was begun and is not applied, and its frames are gone from the inbox",
        lambda s: s is InboxState.BATCH_GONE,
        put_back="put the inbox back",
    ),
)

SUMS: tuple[Case[Evidence], ...] = (
    Case("sums fit", Action.GO_ON, "tell of nothing that comes later", lambda e: not e.sums_beyond),
    Case(
        "sums newer",
        Action.STOP,
        "the folder `sums` tells of batches that its history does not reach: an older history was"
        " put back",
        lambda e: e.sums_beyond,
        put_back="put the newer history back",
    ),
)

FOLDERS: tuple[Case[Evidence], ...] = (
    Case("own folders", Action.GO_ON, "each is this group's", lambda e: not e.foreign),
    Case(
        "foreign folder",
        Action.STOP,
        "holds files of another group",
        lambda e: bool(e.foreign),
        put_back="put this group's own folder back",
        acceptable=False,
    ),
)

TAIL: tuple[Case[Evidence], ...] = (
    Case("tail torn", Action.GO_ON, "is cut off, if there is one", lambda e: not e.tail),
    Case(
        "tail was whole",
        Action.STOP,
        "the newest batch of its history is damaged",
        lambda e: bool(e.tail),
        put_back="restore the file from a copy",
    ),
)

FINE: tuple[Case[Evidence], ...] = (
    Case(
        "single writes fit",
        Action.GO_ON,
        "what is kept of single writes lies in front of what is applied, and is never applied",
        lambda e: not e.fine_beyond or _no_line(e),
    ),
    Case(
        "single writes newer",
        Action.STOP,
        "the folder `fine` holds frames that were applied once, and its history does not reach"
        " them: everything else was set back",
        lambda e: e.fine_beyond and not _no_line(e),
        put_back="put history, inbox and replica of the same time back",
    ),
)


def judge(evidence: Evidence) -> Verdict:
    findings = [_find(HISTORY, evidence)]
    findings += [_find(IMAGE, state, name) for name, state in sorted(evidence.images.items())]
    findings += [
        _find(INBOX, evidence.inbox),
        _find(SUMS, evidence),
        _find(FINE, evidence),
        _find(FOLDERS, evidence, evidence.foreign),
        _find(TAIL, evidence, evidence.tail),
    ]
    return Verdict(tuple(findings))


def _find(cases: tuple[Case[T], ...], facts: T, what: str = "") -> Finding:
    case = next(each for each in cases if each.fits(facts))
    return Finding(case.label, case.action, case.prose, case.put_back, case.acceptable, what)
