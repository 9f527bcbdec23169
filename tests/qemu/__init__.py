# SPDX-License-Identifier: Apache-2.0
"""Real QEMU semantics without a guest: the storage daemon mirrors into the splitter."""
