# SPDX-License-Identifier: Apache-2.0
"""One history, checked record by record; scrubs and the offline tools go through here.

checks   what the records must say of each   |  read_only  a Storage that writes nothing
         other                               |  places     which histories a path names
                                             |  walk       the records of a segment, on behind
                                             |             whatever is wrong
                                             |  verify     segments, links, the unsealed end
"""
