# SPDX-License-Identifier: Apache-2.0
"""fio's NBD engine as the load, and its figures."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of fio wrote and how long its writes took."""

    writes_per_second: float
    bytes_per_second: float
    latency_p50_us: float
    latency_p99_us: float


def random_writes(
    uri: str, *, block_bytes: int, depth: int, span_bytes: int, seconds: float, seed: int = 1
) -> Load:
    """Random writes of half-compressible data over [0, span_bytes) for `seconds`."""
    command = [
        "fio",
        "--name=load",
        "--ioengine=nbd",
        f"--uri={uri}",
        "--rw=randwrite",
        f"--bs={block_bytes}",
        f"--iodepth={depth}",
        f"--size={span_bytes}",
        "--time_based",
        f"--runtime={seconds}",
        f"--randseed={seed}",
        "--buffer_compress_percentage=50",
        "--refill_buffers=1",
        "--output-format=json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write"]
    percentiles = figures["clat_ns"]["percentile"]
    return Load(
        writes_per_second=figures["iops"],
        bytes_per_second=figures["bw_bytes"],
        latency_p50_us=percentiles["50.000000"] / 1000,
        latency_p99_us=percentiles["99.000000"] / 1000,
    )
