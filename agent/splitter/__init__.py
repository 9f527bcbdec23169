# SPDX-License-Identifier: Apache-2.0
"""The splitter: an NBD server that numbers, stamps and logs each write before it answers.

In the direction of the data; left of the bar nothing opens a socket or starts a thread:

    continuity   what an event does to a group: a table     |
    sync_end     when a block copy has made a disk whole    |
    ending       what a final cut needs                     |
    latency      request to reply, counted                  |  lane      appends that may stick
    reservation  ordinals and LSNs, durable ahead of use    |  exports   NBD requests, replies
    tiers        tmpfs first, then disk, then full          |  control   the agent's orders, status
    stream       one stream's log: encode, append, queue    |  events    log lines that cannot block
    disk         one of the group's, and who writes to it   |
    roster       disks and members                          |  orders    and how they are done
    cutter       cuts and holds                             |  trouble   a group's, in the log
    writer       the stream of now, records of our own      |  groups    of the host: made, timed,
    last_stamp   what the spool knows of the time           |            changed with the file
    group        all of it together: keeps, or loses        |  service   the life of the process
    status       what is published                          |  __main__

A write: exports.DiskClient.submit → group.GroupLog.take → stream.StreamLog.append → one `pwritev` →
the replies, in one step of the event loop. Only an append to the disk tier leaves the loop.
"""
