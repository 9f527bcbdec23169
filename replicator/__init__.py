# SPDX-License-Identifier: Apache-2.0
"""Replicator: continuous data protection for KVM guests on stock libvirt and QEMU.

What the daemons stand on, and the command. From the attic down (import-linter holds the order):

    cli                      the command that people use
    demo                     the story on a real guest
    (agent, receiver         the daemons: packages of their own beside this one)
    nbd wire control config  protocols and files, each with its types
    states                   what a group's state may say
    (journal                 the log's format and its files)
    base                     the ground floor
"""

__version__ = "0.1.0"
