# SPDX-License-Identifier: Apache-2.0
"""Which points go and when, and how their room is given back.

thinning      which `keep` does not keep        |  budget    what there is no room for
forecast      when the budget will be reached   |  dropping  by order of a person
stamps        ages of points that a jumping     |  reclaim   segments freed or merged, in steps
              clock had stamped                 |  keeping   all of it, between batches
rewrite_rate  how fast the past is rewritten    |  earlier_images  of disks before they were resized
"""
