# SPDX-License-Identifier: Apache-2.0
"""Application-consistent points: scripts, freeze, cut, thaw, and the watchdog behind it all.

schedule   when                       |  scripts    before and behind a freeze
watch      how long it may take       |  guard      holds the watchdog
figures    counts, for /metrics       |  watchdog   a process that thaws whatever becomes of us
                                      |  sequence   all of it, in order
"""
