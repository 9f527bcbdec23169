# SPDX-License-Identifier: Apache-2.0
"""What names a point or a write, whose time it bears, and where errors are put into words."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_TEXT = ("tests/base/test_pointtext.py",)
_SPEC = ("tests/receiver/test_pointspec.py",)
_CLOCK = ("tests/base/test_clock.py",)

MUTANTS = (
    Mutant(
        "a printed time means the whole microsecond",
        "receiver/points/pointspec.py",
        "    at = bisect_right(points, moment.end_ns, key=lambda point: point.time_ns)\n",
        "    at = bisect_right(points, moment.time_ns, key=lambda point: point.time_ns)\n",
        _SPEC,
    ),
    Mutant(
        "a span ends before the next point",
        "receiver/points/points.py",
        "    end_ns = max(following.time_ns // 1000 * 1000 - 1, point.time_ns)\n",
        "    end_ns = max(following.time_ns, point.time_ns)\n",
        (*_SPEC, "tests/receiver/test_points.py"),
    ),
    Mutant(
        "points never share what is printed of their times",
        "receiver/history/state.py",
        "        time_ns = max(draft.time_ns, (self.last_time_ns // 1000 + 1) * 1000)\n",
        "        time_ns = max(draft.time_ns, self.last_time_ns)\n",
        (*_SPEC, "tests/receiver/test_points.py"),
    ),
    Mutant(
        "a write lies behind the cut before it",
        "replicator/base/clock.py",
        "            floor_ns = max(self._newest_ns, self._last_stamp_ns + 1)\n",
        "            floor_ns = self._newest_ns\n",
        _CLOCK,
    ),
    Mutant(
        "a label that is read as something else is not made",
        "replicator/base/pointtext.py",
        "    if not is_plain(text):\n",
        "    if text == LATEST:\n",
        _TEXT,
    ),
    Mutant(
        "now means our time",
        "receiver/points/pointspec.py",
        "    if spec.moment is not None and spec.moment.is_relative:\n",
        "    if spec.moment is not None and spec.moment.is_relative and not points:\n",
        _SPEC,
    ),
    Mutant(
        "a clock of another boot measures nothing",
        "receiver/points/source_clock.py",
        "        apart_ns = self._apart_ns.get(stream)\n",
        "        apart_ns = next(iter(self._apart_ns.values()), None)\n",
        ("tests/receiver/test_source_clock.py",),
    ),
    Mutant(
        "a splitter that is started anew goes on behind the last stamp",
        "agent/splitter/group.py",
        "        self.cutter.behind(reservation.last_stamp_ns)\n",
        "",
        ("tests/splitter/test_group.py",),
    ),
    Mutant(
        "nothing is restored by another name into what is kept",
        "receiver/data_dir/keep_out.py",
        "        if _is_on(way, directory) or _is_shown(way, directory):\n",
        "        if directory in way:\n",
        ("tests/receiver/test_keep_out.py",),
    ),
    Mutant(
        "an error that has its place keeps it",
        "replicator/base/mishaps.py",
        "    if error.filename is None:\n        error.filename = str(path)\n",
        "    error.filename = str(path)\n",
        ("tests/base/test_mishaps.py",),
    ),
)
