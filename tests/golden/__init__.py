# SPDX-License-Identifier: Apache-2.0
"""What earlier versions left on their disks."""
