# SPDX-License-Identifier: Apache-2.0
"""Whether KVM truly works here: only booting tells.

On some machines /dev/kvm opens, a virtual processor is made, and the guest hangs. So the real guest
is booted under KVM with nothing but its console, and has PROBE_SECONDS to say that it lives.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from replicator.demo.account import KVM_DEVICE, Account, require_program
from replicator.demo.domain import MEMORY_MIB, Accelerator, command_line
from replicator.demo.guest.image import GuestImage

PROBE_SECONDS = 6.0
_ALIVE = b"GUEST-ALIVE"


def probe_accelerator(image: GuestImage, account: Account, home: Path) -> Accelerator:
    """`kvm` if the guest boots under it, else `tcg`. Takes PROBE_SECONDS at most."""
    if not KVM_DEVICE.exists():
        return "tcg"
    qemu = require_program("qemu-system-x86_64", package="qemu-system-x86")
    command = account.command(
        *(qemu, "-accel", "kvm", "-cpu", "max", "-m", str(MEMORY_MIB), "-nodefaults"),
        *("-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", image.kernel, "-initrd", image.initramfs, "-append", command_line("probe")),
    )
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_SECONDS,
            cwd=home,
            env=account.environment(home),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "tcg"
    return "kvm" if _ALIVE in done.stdout else "tcg"
