# SPDX-License-Identifier: Apache-2.0
"""One group at its source.

state     what is remembered of it    |  driving  look, one safe step, look again
rate      how fast a figure rises     |  leaving  a group leaves in good order
standing  how it stands: what was     |  group    all of it
          seen, and when              |
"""
