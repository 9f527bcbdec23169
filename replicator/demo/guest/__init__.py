# SPDX-License-Identifier: Apache-2.0
"""The guest of demo and tests: how it is built, described to libvirt, talked to and judged.

verdict  what it found on its disks     |  image    a kernel and an initramfs
                                        |  init.sh  what runs in it
"""
