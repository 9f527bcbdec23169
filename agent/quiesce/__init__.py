# SPDX-License-Identifier: Apache-2.0
"""Application-consistent points: scripts, freeze, cut, thaw, and the watchdog behind it all."""
