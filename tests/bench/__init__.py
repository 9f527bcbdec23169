# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: `make bench`. Every figure is a ratio to a named peer in the same interleaved run.

Machines are noisy: each row is measured in rounds, all peers in turn within a round, and the
median over the rounds is shown. Nothing here is asserted.
"""
