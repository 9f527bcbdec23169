# SPDX-License-Identifier: Apache-2.0
"""The `replicator` command: a client of the daemons' control API, and home of the local tools.

    main          the entry; the only place that turns errors into exit codes
    invocation    what was said before the command: options, which daemon's socket
    orders        most of what a daemon carries out; by themselves:
                  status  view  scrub  audit  reload  history  forget  clock
    local         what needs no daemon: config check, pki, demo
    config_check  whether a file is right, and a daemon could start with it here
    setup         what comes with the programs for a machine: units, samples
    journal       the tools for a bare spool, inbox or history
    output        how results look
    setup         what came with the programs, and where it goes
    window        how far back a history reaches, as status says it
    paths zone    arguments: a path; the time zone in which a time was meant

Modules that take long to import are imported inside the command that needs them.
"""
