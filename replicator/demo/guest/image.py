# SPDX-License-Identifier: Apache-2.0
"""Builds the guest: a kernel and an initramfs, from what Debian ships.

The kernel is Debian's cloud kernel, unpacked (not installed) by deploy/install-dependencies.sh.
The initramfs holds busybox-static, mke2fs and e2fsck of this machine with the libraries they
name, the kernel's virtio modules in the order in which they must be loaded, and init.sh as
process 1. Where the installer has unpacked qemu-guest-agent (for the tests), that is in it too.
Nothing in it is compiled by us, and it has no network.

The archive is not compressed: unpacking ten megabytes costs an emulated processor more than
loading them costs QEMU. Both files end in one directory, readable to all, so that an unprivileged
QEMU can boot them from wherever this checkout is.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from replicator.base.errors import UsageError
from replicator.demo.account import require_program

MODULES: tuple[str, ...] = (  # each needs those before it
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
)
AGENT_MODULE = "virtio_console"  # the guest agent's channel
_DIRECTORIES = ("a", "b", "bin", "dev", "etc", "modules", "proc", "run", "sbin", "sys")
_INIT = Path(__file__).with_name("init.sh")
_INSTALL_HINT = "run deploy/install-dependencies.sh demo"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """Two files that QEMU boots directly."""

    kernel: Path
    initramfs: Path


@dataclass(frozen=True, slots=True)
class UnpackedKernel:
    """A Debian kernel package, unpacked: boot/vmlinuz-V and lib/modules/V (or usr/lib)."""

    image: Path
    modules: Path


def default_kernel_directory() -> Path:
    """Where the installer unpacks the kernel: build/kernel of this checkout, or of the cwd."""
    checkout = Path(__file__).resolve().parents[3] / "build" / "kernel"
    return checkout if checkout.is_dir() else Path("build/kernel").resolve()


def find_guest_agent(kernel_directory: Path) -> Path | None:
    """qemu-ga, which the installer puts beside the kernel for the tests; the demo needs none."""
    program = kernel_directory.with_name("guest-agent") / "qemu-ga"
    return program if program.is_file() else None


def find_kernel(directory: Path) -> UnpackedKernel:
    """Raises UsageError if no kernel was unpacked in `directory`."""
    images = sorted(directory.glob("boot/vmlinuz-*"))
    if not images:
        raise UsageError(f"no guest kernel in {directory}", hint=_INSTALL_HINT)
    version = images[-1].name.removeprefix("vmlinuz-")
    for library in ("lib", "usr/lib"):
        modules = directory / library / "modules" / version
        if modules.is_dir():
            return UnpackedKernel(images[-1], modules)
    raise UsageError(f"no modules for kernel {version} in {directory}", hint=_INSTALL_HINT)


def build_guest(kernel_directory: Path, target: Path) -> GuestImage:
    """Writes `vmlinuz` and `initramfs.cpio` into `target`, which exists. About 0.3 s."""
    kernel = find_kernel(kernel_directory)
    image = GuestImage(target / "vmlinuz", target / "initramfs.cpio")
    shutil.copyfile(kernel.image, image.kernel)
    with tempfile.TemporaryDirectory(dir=target) as staging:
        root = Path(staging) / "root"
        _fill(root, kernel, find_guest_agent(kernel_directory))
        _archive(root, image.initramfs)
    for path in (image.kernel, image.initramfs):
        path.chmod(0o644)
    return image


def _fill(root: Path, kernel: UnpackedKernel, guest_agent: Path | None) -> None:
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True)
    _place(root / "init", _INIT.read_bytes())
    busybox = require_program("busybox", package="busybox-static")
    _require_static(busybox)
    _place(root / "bin/busybox", Path(busybox).read_bytes())
    # Its shell finds the other programs inside itself, once /proc is there; these come before.
    for name in ("sh", "mount"):
        (root / "bin" / name).symlink_to("busybox")
    for name in ("mke2fs", "e2fsck"):
        _place_program(root, name, require_program(name, package="e2fsprogs"))
    modules = MODULES
    if guest_agent is not None:
        _place_program(root, "qemu-ga", str(guest_agent))
        modules = (*MODULES, AGENT_MODULE)
    for index, content in enumerate(_module_contents(kernel.modules, modules)):
        _place(root / "modules" / f"{index:02d}.ko", content)


def _place_program(root: Path, name: str, program: str) -> None:
    _place(root / "sbin" / name, Path(program).read_bytes())
    for library in _libraries(program):
        _place(root / library.relative_to("/"), library.read_bytes())


def _place(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)


def _libraries(program: str) -> list[Path]:
    """What the dynamic linker would load, and the linker itself, under the names it looks for."""
    listing = subprocess.run(
        ["ldd", program], check=True, capture_output=True, text=True, env={"LC_ALL": "C"}
    ).stdout
    words = (word for line in listing.splitlines() for word in line.split())
    return sorted({Path(word) for word in words if word.startswith("/")})


def _require_static(busybox: str) -> None:
    found = subprocess.run(["ldd", busybox], check=False, capture_output=True, env={"LC_ALL": "C"})
    if found.returncode == 0 and b"=>" in found.stdout:
        raise UsageError(
            f"{busybox} is not statically linked", hint="apt-get install busybox-static"
        )


def _module_contents(modules: Path, names: tuple[str, ...]) -> list[bytes]:
    """The modules in load order, uncompressed; without those that the kernel has built in."""
    built_in = {Path(line).stem for line in (modules / "modules.builtin").read_text().splitlines()}
    return [_module(modules, name) for name in names if name not in built_in]


def _module(modules: Path, name: str) -> bytes:
    for path in sorted(modules.rglob(f"{name}.ko*")):
        if path.suffix == ".ko":
            return path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(path.read_bytes())
    raise UsageError(f"no module {name} in {modules}", hint=_INSTALL_HINT)


def _archive(root: Path, target: Path) -> None:
    """cpio in the kernel's format; root owns all of it, and equal input gives equal bytes."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))
    for path in (root, *root.rglob("*")):
        os.utime(path, (0, 0), follow_symlinks=False)
    with target.open("wb") as archive:
        subprocess.run(
            [
                require_program("cpio", package="cpio"),
                *("--create", "--null", "--format=newc", "--quiet"),
                *("--owner=+0:+0", "--reproducible"),
            ],
            check=True,
            cwd=root,
            input=b"".join(name.encode() + b"\0" for name in names),
            stdout=archive,
        )
