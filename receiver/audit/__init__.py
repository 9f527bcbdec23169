# SPDX-License-Identifier: Apache-2.0
"""The audit: every order that changes something, in a log that shows if it was tampered with.

chain     what an entry is, and what makes a   |  log     the files in DATA_DIR/audit
          row of them a chain                  |  watch   reads where a history ends
heads     how far each history was sealed      |
          when an entry was written            |
answers   what `audit` tells of it             |
"""
