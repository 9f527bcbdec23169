# SPDX-License-Identifier: Apache-2.0
"""The three real processes together: driver `external`, kills, the contract of the commands."""
