# SPDX-License-Identifier: Apache-2.0
"""The end of a group's source: its signs, and what a final cut of it needs. No I/O.

A *sign* is what says that a mirror of a complete disk may have ended: its FLUSH or its DISC
(continuity.py). From the first one on the group is suspended: no cut, no hold; a write to a
complete disk means that the source went on, and loses continuity. What the sign was the splitter
cannot know. The agent can, from libvirt, and says it in one of three ways:

    final cut   the domains went down with that sign, and were watched from before it until now:
                the stream ends with a cut, and the group is closed
    unwatched   the domains are down, and nobody can say that they did not run in between: the
                stream ends where it is, without a cut, and the group is closed
    lost        all else

* **A final cut carries the time of the first sign**, however late the order for it comes. Up to
  there the splitter has seen each write; what came after it, nobody has.
* It needs a goodbye (DISC) of every member's mirror, and all of them within SPREAD_NS: a machine
  that goes down ends all its mirrors in one go. Those that end further apart were ended one by
  one, by somebody, and the guest may have written in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.splitter.cutter import Stamp

SPREAD_NS: Final = 5_000_000_000


@dataclass(slots=True)
class Ending:
    """`first_ns`, `last_ns`: the first and the last sign, monotonic. `at`: the first one as a
    point's time, taken when it was seen."""

    first_ns: int
    last_ns: int
    at: Stamp

    def refusal(self, *, all_said_goodbye: bool) -> str:
        """Why this may not be taken for "replica = source"; empty if it may. That the domains are
        down, and were watched, is the caller's word."""
        if not all_said_goodbye:
            return "a member's mirror has not said goodbye"
        if self.last_ns - self.first_ns > SPREAD_NS:
            return "the mirrors ended one by one, so the guest may have written in between"
        return ""
