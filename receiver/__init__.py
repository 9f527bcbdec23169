# SPDX-License-Identifier: Apache-2.0
"""The DR side: takes the log in, keeps every point reachable, serves views, rolls back.

The rooms, from the roof down; each imports only from those below it (import-linter holds this):

    __main__, service              the daemon
    orders       what a person asks of the receiver: control API, leftovers, reload, the audit of it
    metrics      figures, for Prometheus
    session      agents: who may speak, and what is said
    group        one group: its parts put together, its lanes, its seat, its status
    opening      a group is opened: do its parts belong together?
    offline      a history read with no daemon
    scrub        everything is read again, and compared
    restore      an image for elsewhere, of a point
    views        a point, as a disk that can be read (or written beside)
    retention    which points go, and when; room given back
    apply        batches: the log is applied to the replica, the old content kept
    rollback     a point becomes the state of now
    fitting      what lies beside what, and what follows from it
    damage       what is known to be wrong, and how it is healed
    check        one segment or history, checked record by record
    writes       single writes as points
    blocks       replica images and what is done to their blocks
    intake       frames come in and are durable
    catalog, audit                 of all groups: an index of points; what was ordered
    history      the authority: before-images, sums, the state of the group
    points       values that all rooms hand each other; how a text becomes a point
    counted      the clock by which everything ages
    data_dir     the folder, its lock, the room kept back in it
    tasks        threads, lanes, retries; knows nothing of groups

The core (all below `group`, and GroupReplica in it) decides and does the file work, synchronously,
on `Storage` and `Clock`. The daemon around it moves bytes and waits. In the direction of the data:

    session: listener → admission → session → intake: arrivals → front → inbox
                            ↑ digest_stream                         ↓
    orders → group: worker ← (lanes) ←  apply → history, blocks → points
                 ↓
              views, restore
"""
