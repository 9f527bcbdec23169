# SPDX-License-Identifier: Apache-2.0
"""Real programs that tests and benchmarks talk to: QEMU's storage daemon, nbdkit, qemu-nbd, fio.

Each is a context manager that starts one process in a directory of the caller's, waits until it
serves, and ends it by its pid.
"""
