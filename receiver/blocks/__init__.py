# SPDX-License-Identifier: Apache-2.0
"""Replica images, and what is done to their blocks.

content  operations become changes of blocks,    |  replica  the images of a group
         with what was there before              |  holes    where an image holds nothing
zeroes   what was never written must hold        |
                                                 |  digests  keyed, for a sync to compare
"""
