# SPDX-License-Identifier: Apache-2.0
"""The history: one chained log of records per group, and the authority on all that was applied.

Read in this order: bodies (what its records say), images (where the before-images lie), batches
(a batch as it is known in memory), writer (appending), opening (what a crash left), compaction
(making it smaller), log (HistoryLog, all of it as one object). docs/history.md tells the format.
"""
