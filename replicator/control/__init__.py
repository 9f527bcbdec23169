# SPDX-License-Identifier: Apache-2.0
"""How the daemons are told what to do: an HTTP API of declared orders, the splitter's JSON lines.

    types, requests  what is answered, what is asked  |  server  HTTP on a unix socket, in a daemon
    orders           each order, declared once        |  client  blocking, in the command
    openapi          the same, as docs/openapi.json   |
    service          what a daemon answers, and the   |
                     border in front of it            |
    describe         a status, as fields of a log line|
    reloading        what a reload answers            |
    splitter         agent and splitter: JSON lines   |

What stands left imports no HTTP; the splitter imports `splitter` alone.
"""
