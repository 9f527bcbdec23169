# SPDX-License-Identifier: Apache-2.0
"""Agents: who may speak, and what is said.

admission  what a newcomer's disks must be   |  listener       sockets, TLS, the hello
                                             |  session        one agent, from WELCOME on
                                             |  digest_stream  what the replica holds
"""
