# SPDX-License-Identifier: Apache-2.0
"""What every part stands on: errors, names, units, clock, storage. Imports nothing of ours.

What decides on the left, what asks the machine on the right:

    errors     one class for each exit code     |  mishaps       an OSError in words
    units      sizes and durations as text      |  trouble       what a supervision caught
    names      of groups, disks, agents         |  report        a program failed, on stderr
    address    host:port                        |  logs          events as key=value lines
    moments    which moment a text means        |  clock         behind an interface
    pointtext  which point a text means         |  storage       files, behind an interface
                                                |  trees         what a folder takes
                                                |  unixsocket    listening, with its mode
                                                |  pki           a small CA
                                                |  certificates  what a person should know of them
                                                |  daemon        the life of one
                                                |  signals       what each one means
                                                |  notify        systemd is told
                                                |  standard      the three streams
"""
