# SPDX-License-Identifier: Apache-2.0
"""What every part stands on: errors, names, units, clock, storage. Imports nothing of ours."""
