# SPDX-License-Identifier: Apache-2.0
"""The source side: the splitter, which takes the guest's writes, and the agent, which ships them.

They are two processes. `agent.splitter` sits in the path of every guest write and so does little
and imports little; everything else here may crash or be upgraded while a guest writes. They share
files (the spool), a control socket (replicator.control.splitter) and the names of exports
(`naming`), and no memory.

The agent's rooms, from the roof down; each imports only from those below it:

    __main__, service, metrics, leftovers   the daemon
    drivers/libvirt   libvirt's domains: looked at, mirrored, watched
    group             one group at its source
    links             to the splitter, to the receiver
    shipping          the log goes to the receiver
    quiesce           application-consistent points
    drivers           the kinds of source, behind driver.Driver; `external`
    memory            what is remembered across restarts
    splitter          the other process
    retrying, naming  when something is tried again; names
"""
