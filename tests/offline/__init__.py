# SPDX-License-Identifier: Apache-2.0
"""Bare histories, read with no daemon: verified, extracted from, read by hand from the docs."""
