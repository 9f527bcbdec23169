# SPDX-License-Identifier: Apache-2.0
"""Frames come in, are verified, and are durable before they are acknowledged.

front    what a record does to the group as   |  arrivals  bytes off a session, bounded
         it will be                           |  inbox     frames on the disk, until applied
units    a frame as what goes into batches    |  intake    all of it: a stream is taken in
"""
