# SPDX-License-Identifier: Apache-2.0
"""A group is opened: its parts are looked at, judged, and mended or refused.

opening   all of it, in order; and `history accept`
compare   the replica's blocks with the sums on record
ahead     the same, with the log that comes next
mending   what was found goes on record
"""
