# SPDX-License-Identifier: Apache-2.0
"""The history: one chained log of records per group, and the authority on all that was applied.

docs/history.md tells the format. What decides on the left, what reads or writes on the right:

    bodies     what its records say                   |  writer      appending, sealing
    state      the group as the history knows it:     |  reader      images, by where they lie
               streams, disks, syncs                  |  opening     what a crash left
    extents    sets of ranges                         |  compaction  rewriting segments, in steps
    images     where before-images lie                |  segment_set sealed ones, and the newest
    batches    a batch as it is known in memory       |  log         HistoryLog: all of it as one
    batch_list all of them, and their points          |
    packing    how an image is stored                 |  units       walking a segment's records
    tables     segments' tables of images             |  summaries   what opening takes from a
    merging    which batches become one               |              sealed one, in a file beside
    summary    such a file: whose, and what it says   |

    index/     finding an image among millions, on the disk
    sums/      what the replica must hold
"""
