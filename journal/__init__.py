# SPDX-License-Identifier: Apache-2.0
"""The log's format and its files: one record format from the hypervisor to the replica.

Read in this order: record (the 64-byte header and the chain), bodies (what a cut or a sync says),
segment (a file of records), recovery (what an open after a crash concludes), then the files that
do I/O: appender, reader, seal, spool, inspect. Data goes one way: appended, read, sealed, freed.
"""
