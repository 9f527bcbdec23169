# SPDX-License-Identifier: Apache-2.0
"""Single writes as points: what lies between one checkpoint and the next.

walk     which writes there are              |  log      applied frames, kept for a while
overlay  what some of them come to           |  history  points of them, found and laid
"""
