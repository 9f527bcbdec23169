# SPDX-License-Identifier: Apache-2.0
"""Application-consistent points: scripts, freeze, cut, thaw, and the watchdog behind it all.

schedule   when                       |  scripts    before and behind a freeze
watch      how long it may take       |  guard      holds the watchdog
freezer    what is asked of whoever   |  watchdog   a process that thaws whatever becomes of us
           can freeze a guest         |  sequence   all of it, in order
figures    counts, for /metrics       |
"""
