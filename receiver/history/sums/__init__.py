# SPDX-License-Identifier: Apache-2.0
"""Sums: what each block of the replica must hold, now and at a time before. Derived.

layers   what is known, newest first     |  runs      sorted sums, on the disk
recent   the blocks that changed last    |  base      of batches that are removed
windows  what was looked up last         |  sums      LatestSums: what holds now
                                         |  past      what held behind a batch
"""
