# SPDX-License-Identifier: Apache-2.0
"""Where a group's writes come from: one module per kind of source, behind driver.Driver."""
