# SPDX-License-Identifier: Apache-2.0
"""The log's format and its files: one record format from the hypervisor to the replica.

Without I/O: record (64-byte header and the chain), bodies (what a cut or a sync says), entry (an
inbox's frames), format (what both have in common), segment (a file of them), recovery (what an open
after a crash concludes) and survey (the facts behind a bad entry).

With I/O: spool (where segments lie), appender, durable_log (an appender that is cut back to what is
durable: the receiver's logs), stream_files and reader, reopen (after a crash), seal, dump. Data
goes one way: appended, read, sealed, freed. docs/formats.md has it on a page.
"""
