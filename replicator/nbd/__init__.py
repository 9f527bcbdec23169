# SPDX-License-Identifier: Apache-2.0
"""The network block device protocol, written by hand: fixed newstyle, the server.

What is in which file, in the direction of the data. Left of the bar nothing does I/O:

    constants        numbers and layouts of the wire            |
    limits           every bound, and how the bounds relate     |
    exports          what a server serves: the interfaces       |
    state            the states of a connection, as a table     |
    memory           of all receive buffers: who may have how   |
                     much, who gives way                        |
    receive_buffer   the kernel's bytes land here               |  connection   one socket
    handshake        options, until an export is chosen         |  server       the listening socket
    block_status     which of it are holes: base:allocation     |
    transmission     requests out of the buffer, replies        |
    protocol         the three above as one connection          |
    uri              nbd+unix:///EXPORT?socket=PATH             |

The client's end is in tests/peers: nothing that is installed reads over NBD.

Bytes: kernel → `receive_buffer` → `protocol.requests()` → `Export.submit()`; answers go back by
`Connection.reply*()` → `protocol.data_to_send()` → one write for all of a step.

The splitter lives on this package and on nothing heavier: standard library and `replicator.base`.
"""
