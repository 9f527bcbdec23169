# SPDX-License-Identifier: Apache-2.0
"""Giving up points because a person orders it: which ones, and what is refused. No I/O.

An order names points, or an age, or both. Points that are named and must stay (the newest that is
applied, what a view shows, what the newest rollback pinned) refuse the order; an age passes over
them, and over points with a label or an expiry ahead of them: whoever means those names them.
Whatever is younger than the lock refuses the order, unless it breaks the lock, which takes a
reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from receiver.points.values import Point
from receiver.retention.budget import Situation
from receiver.retention.thinning import end_ns, is_promised
from replicator.base.clock import rfc3339
from replicator.base.errors import NotFoundError, OwnedError, UnreachableError, UsageError

REASON_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class DropOrder:
    """`sequences` were named; `older_than_ns` None: no age was. `reason` is what breaks the lock;
    empty: nothing does."""

    sequences: frozenset[int] = frozenset()
    older_than_ns: int | None = None
    reason: str = ""


def check_reason(reason: str, *, breaks_lock: bool) -> str:
    """The reason without space around it; "" if no lock is to be broken. Raises UsageError."""
    reason = reason.strip()
    if not breaks_lock:
        if reason:
            raise UsageError("a reason is given, but no lock is to be broken")
        return ""
    if not reason:
        raise UsageError("breaking a lock takes a reason", hint="say why: --reason TEXT")
    if len(reason) > REASON_LENGTH_MAX or not reason.isprintable():
        raise UsageError(f"a reason is one line of at most {REASON_LENGTH_MAX} characters")
    return reason


def chosen(
    group: str, known: Sequence[Point], order: DropOrder, situation: Situation
) -> list[Point]:
    """The points that go, oldest first. `known` are all there are. Raises what refuses the order,
    before anything is done."""
    applied = [point for point in known if point.sequence <= situation.applied_point]
    _check_named(group, known, applied, order, situation)
    found = [
        point
        for point in applied
        if point.sequence in order.sequences or _is_meant(point, applied[-1], order, situation)
    ]
    _check_lock(group, found, order, situation)
    return found


def locked_points(points: Sequence[Point], situation: Situation) -> list[Point]:
    return [point for point in points if end_ns(point) > situation.locked_after_ns]


def _is_meant(point: Point, newest: Point, order: DropOrder, situation: Situation) -> bool:
    """Whether the age means it."""
    if order.older_than_ns is None or point is newest:
        return False
    if point.sequence in situation.pins.held | situation.pins.kept:
        return False
    if is_promised(point, situation.now_ns):
        return False
    return situation.now_ns - end_ns(point) >= order.older_than_ns


def _check_named(
    group: str,
    known: Sequence[Point],
    applied: Sequence[Point],
    order: DropOrder,
    situation: Situation,
) -> None:
    by_sequence = {point.sequence: point for point in known}
    pins = situation.pins
    for sequence in sorted(order.sequences):
        point = by_sequence.get(sequence)
        if point is None:
            raise NotFoundError(f"group {group!r} has no point #{sequence}")
        if sequence > situation.applied_point:
            raise UnreachableError(
                f"point {point} of group {group!r} is not applied yet", hint="try again in a moment"
            )
        why = ""
        if point is applied[-1]:
            why = "it is the newest one"
        elif sequence in pins.held:
            why = "a view shows it"
        elif sequence in pins.kept:
            why = "the newest rollback made it: it is the way back"
        if why:
            raise OwnedError(f"point {point} of group {group!r} cannot be given up: {why}")


def _check_lock(group: str, found: Sequence[Point], order: DropOrder, situation: Situation) -> None:
    locked = locked_points(found, situation)
    if locked and not order.reason:
        last = locked[-1]
        until = rfc3339(situation.ages.lock_ends_ns(end_ns(last), situation.lock_ns))
        clock = situation.ages.hint
        noun = "point is" if len(locked) == 1 else "points are"
        raise OwnedError(
            f"{len(locked)} {noun} locked in group {group!r}: {last} until {until}",
            hint="wait until then; or break the lock: --break-lock --reason TEXT"
            + (f". {clock[0].upper()}{clock[1:]}" if clock else ""),
        )
