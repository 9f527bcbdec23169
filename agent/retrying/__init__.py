# SPDX-License-Identifier: Apache-2.0
"""Something is tried again: when, and by whom.

backoff  one source, one step         |  supervision  tasks of one part, begun anew
pace     many agents, one receiver    |
"""
