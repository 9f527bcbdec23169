# SPDX-License-Identifier: Apache-2.0
"""A real guest under a real libvirt: the guest by itself, the driver, and the whole story."""
