# SPDX-License-Identifier: Apache-2.0
"""Replicator: continuous data protection for KVM guests on stock libvirt and QEMU."""

__version__ = "0.1.0"
