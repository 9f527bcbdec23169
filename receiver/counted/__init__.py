# SPDX-License-Identifier: Apache-2.0
"""The counted clock: the time by which everything at the receiver ages, and the lock.

In the direction of the data; what decides on the left, what does on the right:

    rules       how it runs, starts, stands still,   |  machine   boottime, wall clock, which boot
                and when a jump is accepted          |
    witness     what the agents' clocks say of ours  |
    ages        how old a moment is, for deletion    |  keeper    the clock itself: clock.json,
                and for the lock                     |            events, acceptance
"""
