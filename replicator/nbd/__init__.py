# SPDX-License-Identifier: Apache-2.0
"""The network block device protocol, written by hand: fixed newstyle, the server.

What is in which file, in the direction of the data. Left of the bar nothing does I/O:

    constants       numbers and layouts of the wire            |
    limits          every bound, and how the bounds relate     |
    request         one request                                |
    exports         what is served, and what that sees of a    |
                    client: the interfaces                     |
    state           the states of a connection, as a table     |
    memory          of all requests: bounded, who gives way    |  share       a connection's part
    receive_buffer  the kernel's bytes land here               |
    handshake       options, until an export is chosen         |  server_tls  the handshake behind
    block_status    which of it are holes: base:allocation     |              STARTTLS
    transmission    requests out of the buffer, replies        |  connection  one socket
    protocol        the three above as one connection          |  server      the listening socket
    uri             nbd+unix:///EXPORT?socket=PATH             |

Each imports only from those that import-linter has below it (pyproject.toml). The client's end is
in tests/peers: nothing that is installed reads over NBD.

Bytes: kernel → `receive_buffer` → `protocol.requests()` → `Export.submit()`; answers go back by
`Client.reply*()` → `transmission` → `protocol.data_to_send()` → one write for all of a step.

The splitter lives on this package and on nothing heavier: standard library and `replicator.base`.
"""
