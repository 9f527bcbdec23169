# SPDX-License-Identifier: Apache-2.0
"""What the canned daemons of `services` answer. No I/O."""

from __future__ import annotations

import msgspec

from replicator.base.errors import (
    NoPointError,
    NotFoundError,
)
from replicator.control.types import (
    AuditRecord,
    BadPlace,
    Choice,
    ClockStatus,
    ConfigChange,
    DiskStatus,
    GroupStatus,
    Point,
    ScrubReport,
    View,
    Write,
)

FIRST = Point(
    sequence=1,
    time="2026-03-01T02:00:00.000000Z",
    until="2026-03-01T02:00:09.000000Z",
    kind="crash",
)
SECOND = Point(
    sequence=2,
    time="2026-03-01T02:00:10.000001Z",
    until="2026-03-01T02:00:10.000001Z",
    kind="application",
    label="before upgrade",
)
GROUP = GroupStatus(
    name="web",
    state="protected",
    rpo_seconds=0.75,
    durable_lsn=8192,
    applied_lsn=4096,
    points=2,
    newest_point=SECOND,
    disks=[DiskStatus(name="web-vda", size=1 << 30)],
)
VIEW = View(id="v1", group="web", point=FIRST, disks={"web-vda": "nbd+unix:///web-vda?socket=/s"})


def known(group: str) -> None:
    if group != "web":
        raise NotFoundError(f"no group {group!r}", hint="status lists the groups")


def choose(text: str, *, unverified: bool = False) -> Choice:
    if text == "latest":
        return Choice(asked=text, point=msgspec.structs.replace(SECOND, unverified=unverified))
    if text == "2026-03-01T02:00:05Z":
        return Choice(asked=text, point=FIRST, distance_seconds=0)
    if text == "10m ago":
        return Choice(asked=text, point=FIRST, distance_seconds=3.25)
    if text == "#2":
        return Choice(asked=text, point=SECOND)
    raise NoPointError(f"no point {text!r} in group web")


WRITE = Write(
    point="#1+17w", time=FIRST.time, disk="web-vda", offset=4096, length=512, kind="write"
)
BAD = BadPlace(
    where="replica",
    file="/disks/web-vda.raw",
    offset=8192,
    disk="web-vda",
    block_offset=8192,
    length=4096,
    points=[1, 2],
    healed=False,
    problem="content is not what was written last",
)
STEPPED = ClockStatus(
    state="stepped",
    wall="2026-03-08T02:00:00.000000Z",
    counted="2026-03-01T02:00:00.000000Z",
    behind_seconds=604_800,
    why="the machine's clock is 7 d ahead of what has passed",
)
SCRUB_REPORT = ScrubReport(
    running=False,
    began=FIRST.time,
    ended=SECOND.time,
    good=None,
    done_bytes=3 << 20,
    total_bytes=3 << 20,
    replica_bytes=2 << 20,
    history_bytes=1 << 20,
    unverified_bytes=4096,
    bad=[BAD, msgspec.structs.replace(BAD, offset=0, block_offset=0, healed=True)],
)


CHANGES = [
    ConfigChange(place="group db", kind="added"),
    ConfigChange(place="group old", kind="removed"),
    ConfigChange(place="history.max_bytes", kind="changed", before='"1GiB"', after='"2GiB"'),
    ConfigChange(place="receiver.name", kind="changed", before='"dr"', after='"dr2"', live=False),
]


RECORD = AuditRecord(
    sequence=7,
    time=SECOND.time,
    order="rollback",
    object="web",
    argument='{"to": "good"}',
    uid=0,
    pid=99,
    outcome="done",
    message="",
)
