# SPDX-License-Identifier: Apache-2.0
"""How the daemons are told what to do: types, the HTTP control API, the splitter's JSON lines.

    types      what is said                          |  server  HTTP on a unix socket, in a daemon
    service    what a daemon must be able to do      |  client  blocking, in the command
    endpoints  which path does what                  |
    describe   a status, as fields of a log line     |
    reloading  what a reload answers                 |
    splitter   agent and splitter: JSON lines        |

`types` and `splitter` import no HTTP; the splitter imports the latter alone.
"""
