# SPDX-License-Identifier: Apache-2.0
"""Everything is read again: replica, images, records; what is wrong goes on record, and is healed.

state     how far, and what was found      |  history, images, replica   one kind each
findings  what becomes of a finding        |  scrub       all of it, in steps of the lane
                                           |  scrubbing   when; by order or by the clock
"""
