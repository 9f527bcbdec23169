# SPDX-License-Identifier: Apache-2.0
"""The audit: every order that changes something, in a log that shows if it was tampered with.

chain       what an entry is, and what makes a row of them a chain; no I/O
log         the files in DATA_DIR/audit: opened, appended to, read
heads       how far each group's history was sealed when an entry was written
"""
