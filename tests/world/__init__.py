# SPDX-License-Identifier: Apache-2.0
"""The simulated world: disk, clock, and the model that every recovery point is compared with."""
