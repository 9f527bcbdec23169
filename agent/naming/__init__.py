# SPDX-License-Identifier: Apache-2.0
"""What agent and splitter must name alike. No I/O.

export_name        the NBD export of one sync of one disk
external_instance  the instance of a disk that an operator mirrors
"""
