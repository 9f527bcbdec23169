# SPDX-License-Identifier: Apache-2.0
"""The history: one chained log of records per group, and the authority on all that was applied.

Read in this order: bodies (what its records say), images (where the before-images lie), batches
(a batch as it is known in memory), packing (how an image is stored), writer (appending), opening
(what a crash left), merging and compaction (making it smaller), index* (finding an image among
millions, on the disk), sum* (what the replica must hold), log (HistoryLog, all of it as one
object). docs/history.md tells the format.
"""
