# SPDX-License-Identifier: Apache-2.0
"""How a source ends, what a failed write of it costs, and how long a retry waits."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_END = ("tests/drivers/test_libvirt_end.py",)
_DRIVER = ("tests/drivers/test_libvirt_driver.py",)
_ERRORS = ("tests/drivers/test_source_errors.py",)
_SPLITTER = ("tests/splitter/test_continuity.py",)

MUTANTS = (
    Mutant(
        "a final cut carries the time of the first sign",
        "agent/splitter/group.py",
        "            at = None if self.ending is None else self.ending.at\n",
        "            at = None\n",
        _SPLITTER,
    ),
    Mutant(
        "mirrors that ended one by one make no final cut",
        "agent/splitter/ending.py",
        "        if self.last_ns - self.first_ns > SPREAD_NS:\n",
        "        if self.last_ns - self.first_ns > 2 * SPREAD_NS:\n",
        _SPLITTER,
    ),
    Mutant(
        "an end that was not watched is no final cut",
        "agent/drivers/libvirt/end.py",
        "    if not watch.watches(group.stream):\n",
        "    if watch is None:\n",
        _END,
    ),
    Mutant(
        "a domain that was started since has not stopped once",
        "agent/drivers/libvirt/watch.py",
        "heard.started_ns < self._live[1] < heard.stopped_ns",
        "self._live[1] < heard.stopped_ns",
        _END,
    ),
    Mutant(
        "without a connection nothing is watched",
        "agent/drivers/libvirt/watch.py",
        "        self._since_ns = self._live = None\n",
        "        self._since_ns = None\n",
        _END,
    ),
    Mutant(
        "a word of the splitter from before the connection begins no watch",
        "agent/drivers/libvirt/watch.py",
        "        if self._since_ns is None or said_ns <= self._since_ns:\n",
        "        if self._since_ns is None:\n",
        _END,
    ),
    Mutant(
        "libvirt is asked after the sign",
        "agent/drivers/libvirt/end.py",
        "        if reading.asked_ns <= group.sign_ns:\n",
        "        if reading.asked_ns <= 0:\n",
        _END,
    ),
    Mutant(
        "nothing is closed by a word that is older than libvirt's answer",
        "agent/drivers/libvirt/end.py",
        "    return group.said_ns >= reading.answered_ns\n",
        "    return group.said_ns >= 0\n",
        (*_END, *_DRIVER),
    ),
    Mutant(
        "an event that was sent before libvirt's answer is waited for",
        "agent/drivers/libvirt/end.py",
        "        if now_ns - reading.asked_ns < SETTLE_NS:\n",
        "        if now_ns < reading.asked_ns:\n",
        _END,
    ),
    Mutant(
        "libvirt is asked again when the splitter says something else",
        "agent/drivers/libvirt/facts.py",
        "kept.about == about and now_ns",
        "now_ns",
        ("tests/drivers/test_libvirt_facts.py",),
    ),
    Mutant(
        "a domain that is gone is off",
        "agent/drivers/libvirt/facts.py",
        "        return all(name in domains and domains[name].running for",
        "        return all(name not in domains or domains[name].running for",
        ("tests/drivers/test_libvirt_facts.py",),
    ),
    Mutant(
        "an error that does not name its disk is of each",
        "agent/drivers/libvirt/source_errors.py",
        "    return set(members.values())\n",
        "    return set()\n",
        _ERRORS,
    ),
    Mutant(
        "errors that the guest was told a lie about are errors",
        "agent/drivers/libvirt/watch.py",
        '            case IoError(action="none" | "report"):\n',
        '            case IoError(action="report"):\n',
        _END,
    ),
    Mutant(
        "QEMU's count is compared with that of the sync's begin",
        "agent/drivers/libvirt/source_errors.py",
        "        and disk.source_errors > known\n",
        "        and disk.source_errors > known + 1\n",
        _ERRORS,
    ),
    Mutant(
        "a disk that fails again waits",
        "agent/drivers/libvirt/source_errors.py",
        "                self._again.add(disk)\n",
        "                self._again.discard(disk)\n",
        _ERRORS,
    ),
    Mutant(
        "a failed step is not tried again at each status",
        "agent/group/driving.py",
        "                await self._wait(self._anew, self._failed(str(error)))\n",
        "                await self._wait(self._due, self._failed(str(error)))\n",
        ("tests/agent/test_driving.py",),
    ),
    Mutant(
        "each failure waits longer",
        "agent/retrying/backoff.py",
        "self.first_seconds * 2.0 ** min(self.failures, 64)",
        "self.first_seconds * 2.0 ** min(self.failures, 0)",
        ("tests/agent/test_backoff.py",),
    ),
)
