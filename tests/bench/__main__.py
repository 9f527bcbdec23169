# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks: `make bench`, or `python -m tests.bench --rounds 9 --only mirror`."""

from __future__ import annotations

import argparse

from rich.console import Console

from tests.bench.end_to_end import end_to_end_table
from tests.bench.history import POINTS, growth_table, history_table
from tests.bench.mirror import alone_row, mirror_row
from tests.bench.table import show


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--only", choices=("mirror", "alone", "end-to-end", "history"))
    parser.add_argument(
        "--points", type=int, action="append", help="further rows of the growth table"
    )
    arguments = parser.parse_args()
    console = Console()
    rows = []
    if arguments.only in (None, "mirror"):
        rows.append(mirror_row(arguments.rounds, arguments.seconds))
    if arguments.only in (None, "alone"):
        rows.append(alone_row(arguments.rounds, arguments.seconds))
    if rows:
        show(rows, console)
    if arguments.only in (None, "end-to-end"):
        console.print(end_to_end_table(arguments.rounds, arguments.seconds))
    if arguments.only in (None, "history"):
        console.print(history_table(arguments.rounds))
        console.print(growth_table((*POINTS, *(arguments.points or ()))))


if __name__ == "__main__":
    main()
