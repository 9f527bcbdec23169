# SPDX-License-Identifier: Apache-2.0
"""The receiver daemon: sessions over real sockets, views, control, the process itself."""
