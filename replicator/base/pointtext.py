# SPDX-License-Identifier: Apache-2.0
"""What a text for a point says: `latest`, `#12`, `#12+3w`, a time, a label. No I/O but reading the
time zone database.

This file owns the grammar, for all who read such a text and all who hand out what will be one: the
receiver and the tools that find a point by it, and those who let a person make a label. It knows no
points: which one is meant is for who holds them (receiver.points.pointspec).

A name never means two things. A text is what the first of these takes it for:

    label:TEXT                             the label TEXT, whatever that looks like
    #12, #12+3w                            a number, of a point or of a write behind it
    latest, latest application             words, in any case
    a time (replicator.base.moments)       or what looks like one, and is then refused
    anything else                          the label that it is

A text that is something else than itself cannot become a label any more (`check_label`). A point
that has one all the same, from before that was so, is named `label:TEXT` and is printed so
(`label_text`): what is printed is accepted, and means the point.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from replicator.base.errors import UsageError
from replicator.base.moments import Moment, moment_of
from replicator.base.names import check_label_form

FORMS = (
    "a point is 'latest', '#12', '#12+3w', a label, a time like '2026-03-01 12:00', 'yesterday"
    " 14:00' or 2026-03-01T12:00:00Z, or '10m ago'; `replicator points GROUP` lists them"
)
LABEL_PREFIX = "label:"
LATEST = "latest"
LATEST_APPLICATION = "latest application"
_SEQUENCE = re.compile(r"#(\d{1,18})(?:\+(\d{1,12})w)?", re.ASCII)
# Whether a text looks like a time does not hang on when or where it is read.
_ANY_TIME_NS, _ANY_ZONE = 0, "UTC"


@dataclass(frozen=True, slots=True)
class PointSpec:
    """What a text says. `sequence` for `#12`, with the first `writes` behind that point; `moment`
    for a time; `label` for one; none of them: `latest`, or `latest application`, as `word` says."""

    text: str
    sequence: int | None = None
    writes: int = 0
    moment: Moment | None = None
    label: str | None = None
    word: str = ""


def parse(text: str, now_ns: int, zone: str | None = None) -> PointSpec:
    """`zone` is that of who typed it. Raises UsageError for what can be no point."""
    text = text.strip()
    if not text:
        raise UsageError("no point is given", hint=FORMS)
    if text.startswith(LABEL_PREFIX):
        if text == LABEL_PREFIX:
            raise UsageError(f"{text!r} names no label", hint=FORMS)
        return PointSpec(text, label=text.removeprefix(LABEL_PREFIX))
    if found := _SEQUENCE.fullmatch(text):
        return PointSpec(text, sequence=int(found[1]), writes=int(found[2] or 0))
    if text.startswith("#"):
        raise UsageError(f"{text[:80]!r} is not a point number", hint=FORMS)
    word = " ".join(text.lower().split())
    if word in (LATEST, LATEST_APPLICATION):
        return PointSpec(text, word=word)
    moment = moment_of(text, now_ns, zone)
    return PointSpec(text, label=text) if moment is None else PointSpec(text, moment=moment)


def is_plain(label: str) -> bool:
    """Whether the label, typed as it is, says itself."""
    try:
        return parse(label, _ANY_TIME_NS, _ANY_ZONE) == PointSpec(label, label=label)
    except UsageError:
        return False


def label_text(label: str) -> str:
    """The text that says the label."""
    return label if is_plain(label) else LABEL_PREFIX + label


def check_label(text: str) -> str:
    """`text` itself, if a new point may be labelled so. Raises UsageError."""
    check_label_form(text)
    if not is_plain(text):
        raise UsageError(
            f"{text!r} cannot be a label: as a POINT it is read as something else",
            hint="'latest', '#…', 'label:…' and what looks like a time already name points; choose"
            " another word",
        )
    return text
