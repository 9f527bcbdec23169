# SPDX-License-Identifier: Apache-2.0
"""The tests. Each package below covers the part of the same name."""
