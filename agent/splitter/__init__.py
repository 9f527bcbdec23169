# SPDX-License-Identifier: Apache-2.0
"""The splitter: takes every write of a guest over NBD, appends it to the group's log, answers.

No I/O, the decisions:
    continuity   what FLUSH, DISC, EOF and an error mean for a group: nothing, pause, loss
    sync_end     when a disk's sync has ended
    latency      what the splitter adds to a guest's writes
With storage, without sockets:
    numbering    ordinals and LSNs that are never given twice
    tiers        tmpfs first, then disk, then full
    group_log    a group's log: streams, writes, cuts, members
The process:
    append_lane  runs appends in line on tmpfs, in a thread with a deadline on disk
    export       an NBD export on top of a group's log
    control      the agent's requests, and the status that is pushed to it
    service      sockets, timers, the life of the process

A write goes export → group_log → append_lane → journal.appender, and its answer back. The process
imports as little as it can: its memory is paid on every KVM host.
"""
