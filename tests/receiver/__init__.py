# SPDX-License-Identifier: Apache-2.0
"""The receiver's core on a simulated disk, against a plain model.

source (the log that a splitter would write) and plain (what a replica must hold, byte by byte) know
nothing of the core. world puts them together: every operation, crash, recovery, and the comparison
of every point. test_machine drives it with Hypothesis, test_crash_points goes through every storage
call of small workloads. `make mutants` takes one rule away at a time and expects to be told.
"""
