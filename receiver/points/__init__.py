# SPDX-License-Identifier: Apache-2.0
"""What all rooms hand each other: points and other values. No I/O but for what `telling` is given.

values        points, streams, notices           |
policy        how much of the past is kept       |
evidence      what the parts of a group say      |
              about each other                   |
source_clock  a source's time in the receiver's  |
points        the points of a group, in order    |  telling   the operator and the catalog
pointspec     from a person's text to a point    |  figures   counts, for /metrics
"""
