# SPDX-License-Identifier: Apache-2.0
"""A point as a disk.

options     what may be asked of a view       |  point_view  blocks of a checkpoint
                                              |  fine_view   and of a single write
                                              |  overlay     what was written beside it
                                              |  files       what a view has on the disk
                                              |  export      all of it, as an NBD export
                                              |  open_views  those that are open: sockets, ends
"""
