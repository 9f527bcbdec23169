# SPDX-License-Identifier: Apache-2.0
"""Batches: the log is applied to the replica, and what was there is kept first.

batch    frames become a batch        |  redo      a batch that a crash tore, done again
recovery whether a torn one touched   |  applier   the lane: draft, keep, write, commit
         nothing                      |
"""
