# SPDX-License-Identifier: Apache-2.0
"""An image of a point, for elsewhere: written, read back, compared.

progress  how far, so that --resume can     |  image    the file that is written
          go on                             |  qcow2    the same, by qemu-img
sums      of what was written               |  restore  all of it
"""
