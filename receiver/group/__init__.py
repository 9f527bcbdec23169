# SPDX-License-Identifier: Apache-2.0
"""One group: its parts put together, the lanes they run on, who may feed it, how it stands.

witness   what was seen of the source     |  group        GroupReplica: the core's parts as one
seat      which session feeds it          |  worker       the lanes; what the daemon calls
status    the verdict, and its words      |  image_watch  looks when no batch comes
"""
