# SPDX-License-Identifier: Apache-2.0
"""One group: its parts put together, the lanes they run on, who may feed it, how it stands.

witness  what was seen of the source     |  parts         the core's parts, put together
seat     which session feeds it          |  group         GroupReplica: steps and their order
known    what is known, any thread       |  showing       points shown, as disks
health   what may be asked of it now     |  rolling_back  a rollback, from the order to its end
status   the verdict, and its words      |
                                         |  lanes         two threads, and what they share
                                         |  feeding       what a session asks
                                         |  applying      one step of the apply lane
                                         |  ordered       what a person orders
                                         |  image_watch   looks when no batch comes
                                         |  worker        all of it at work
"""
