# SPDX-License-Identifier: Apache-2.0
"""The log's format and its files: one record format from the hypervisor to the replica.

What decides on the left, what reads or writes on the right. Data goes one way: appended, read,
sealed, freed.

    record    64-byte header, and the chain          |  spool         where segments lie
    bodies    what a cut or a sync says              |  appender      one `pwritev` a batch
    entry     an inbox's frames                      |  durable_log   an appender that is cut back
    format    what all three kinds have in common    |                to what is durable: the
    segment   a file of them                         |                receiver's logs
    recovery  what an open after a crash concludes   |  stream_files  a stream's segments as one
    survey    the facts behind a bad entry           |  reader        follows the tail
                                                     |  reopen        after a crash
                                                     |  seal          what will not grow again
                                                     |  dump          for people

docs/formats.md has it on a page.
"""
