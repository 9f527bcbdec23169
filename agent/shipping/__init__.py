# SPDX-License-Identifier: Apache-2.0
"""The log goes to the receiver: what to send, what to leave out, what it promised.

resume       where to go on            |  survey       what the spool holds
stretch      how much of it at once    |
sync_filter  blocks the replica has    |
reduction    a frame without them      |
progress     how far; counters         |
marks        labels under way          |  shipper      all of it
"""
