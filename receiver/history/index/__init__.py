# SPDX-License-Identifier: Apache-2.0
"""The index: which image of a block counts at a point, found in O(log) among millions. Derived.

runs     sorted runs of images           |  file    one of them, on the disk
levels   which files there should be     |  index   files made, merged, left
sweep    several runs at once            |  stack   one reading of all of it
"""
