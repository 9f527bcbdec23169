# SPDX-License-Identifier: Apache-2.0
"""Where a group's writes come from: one room or file per kind of source, behind driver.Driver.

driver     what a kind of source must be able to do
external   an operator mirrors the disks into our exports
libvirt/   block copies of a domain's disks
"""
