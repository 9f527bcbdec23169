# SPDX-License-Identifier: Apache-2.0
"""The DR side: takes the log in, keeps every point reachable, serves views, rolls back.

Two halves. The core decides and does the file work, synchronously, on `Storage` and `Clock`: group
(GroupReplica, the whole of one group) and what it stands on:

    taking in    inbox, front, intake, fine_* (single writes as points)
    applying     apply, apply_batch, apply_content, redo, replica, recovery, sync_state
    the past     history/, points, pointspec, point_view, rollback, restore
    keeping it   keeping: thinning, retention and budget, dropping (by order); reclaim gives the
                 room back, pacing says how fast; counted/ is the clock by which all of it ages,
                 reserve the room that is kept back for a full disk
    trusting it  scrub*, healing, damage; audit/ (what was ordered), offline/ (with no daemon)

The daemon around it moves bytes and waits. In the direction of the data:

    listener → seat → session → arrivals → worker (intake lane) → front, inbox
                         ↑ digest_stream ←  worker (apply lane)  → history, replica → points
    control → worker, views → view_export, overlay
"""
