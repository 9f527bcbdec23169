# SPDX-License-Identifier: Apache-2.0
"""The `replicator` command: a client of the daemons' control API, and home of the local tools.

`main.py` is the entry and the only place that turns errors into exit codes; `orders.py` holds the
commands that a daemon carries out, `local.py` those that need none, `output.py` how results look.
Modules that take long to import are imported inside the command that needs them.
"""
