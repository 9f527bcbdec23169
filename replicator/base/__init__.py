# SPDX-License-Identifier: Apache-2.0
"""What every part stands on: errors, limits, units, extents, clock, storage. Imports nothing of ours."""
