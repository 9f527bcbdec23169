# SPDX-License-Identifier: Apache-2.0
"""The DR side: takes the log in, keeps every point reachable, serves views, rolls back.

The sync core decides and does (`group` and what it stands on); the daemon around it moves bytes
and waits. In the direction of the data:

    listener → seat → session → arrivals → worker (intake lane) → inbox
                         ↑ digest_stream ←  worker (apply lane)  → history, replica → points
    control → worker, views → view_export
"""
