# SPDX-License-Identifier: Apache-2.0
"""The DR side: takes the log in, keeps every point reachable, serves views, rolls back.

Two halves. The core decides and does the file work, synchronously, on `Storage` and `Clock`: group
(GroupReplica, the whole of one group) and what it stands on: inbox, front, apply*, replica,
history, rollback, retention, point_view, restore, digests, pointspec, catalog. The daemon around
it moves bytes and waits. In the direction of the data:

    listener → seat → session → arrivals → worker (intake lane) → front, inbox
                         ↑ digest_stream ←  worker (apply lane)  → history, replica → points
    control → worker, views → view_export
"""
