# SPDX-License-Identifier: Apache-2.0
"""One group: its parts put together, the lanes they run on, who may feed it, how it stands.

witness  what was seen of the source     |  parts         the core's parts, put together
seat     which session feeds it          |  group         GroupReplica: steps and their order
known    what is known, any thread       |  showing       points shown, as disks
status   the verdict, and its words      |  rolling_back  a rollback, from the order to its end
                                         |  worker        the lanes; what the daemon calls
                                         |  image_watch   looks when no batch comes
"""
