# SPDX-License-Identifier: Apache-2.0
"""A bare history, read with no daemon: verified, extracted from, put into words.

read_only   a Storage that writes nothing
places      which histories a path names
walk        the records of one segment, on behind whatever is wrong
checks      what the records must say of each other; no I/O
verify      a whole history: segments, links, checks, the unsealed end
whole       several of them, with the audit that saw them
audit_check the audit of a data_dir
reading     which points a history holds, and from where on it can be believed
lock        no receiver at the same time
extract     the images of a point
words       a history's records, for people; no I/O
rebuild     catalog.db from the histories
"""
