# SPDX-License-Identifier: Apache-2.0
"""What a group's state may say, at both ends: one table, below agent and receiver.

words      the states, their order, a verdict          | all of this room decides and does
ages       how old a stamp is, without asking a wall   | nothing else: no I/O in any file
source     the agent's column of the table
replica    the receiver's column of the table
check      what monitoring makes of it: 0, 1, 2
"""
