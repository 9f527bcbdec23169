# SPDX-License-Identifier: Apache-2.0
"""The story on a real guest, and what it takes: an account, a private libvirtd, a guest."""
