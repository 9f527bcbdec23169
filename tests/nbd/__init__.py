# SPDX-License-Identifier: Apache-2.0
"""NBD: the protocols without a socket, the two joined by a fake link, over real sockets, and
with the clients that people use."""
