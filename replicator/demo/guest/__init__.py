# SPDX-License-Identifier: Apache-2.0
"""The guest of demo and tests: how it is built, described to libvirt, talked to and judged."""
