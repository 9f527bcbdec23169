# SPDX-License-Identifier: Apache-2.0
"""The unprivileged user that everything in the demo runs as.

libvirt gives an ordinary user a daemon of that user's own, with all its files in that user's
directories; root has no such thing. So root hands the demo to `nobody`, in a directory of its
own below /var/tmp, and anybody else runs it as themselves. No account is made and none is changed.

A process of that account can only execute and read what others may reach. `require_reachable`
says so in one sentence before something fails in a daemon's log.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from replicator.base.errors import UsageError

KVM_DEVICE = Path("/dev/kvm")
PARENT_DIRECTORY = Path("/var/tmp")  # a disk, not a tmpfs; world-writable; survives a reboot
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Account:
    """A user to run programs as; `is_self` when that is who we are already."""

    uid: int
    gid: int
    extra_groups: tuple[int, ...]
    is_self: bool

    def command(self, *arguments: str | os.PathLike[str]) -> list[str]:
        """The command line that runs `arguments` as this account.

        setpriv replaces itself by the program, so the process started is the program's.
        """
        words = [os.fspath(argument) for argument in arguments]
        if self.is_self:
            return words
        groups = ",".join(map(str, self.extra_groups))
        return [
            "setpriv",
            f"--reuid={self.uid}",
            f"--regid={self.gid}",
            f"--groups={groups}" if groups else "--clear-groups",
            "--",
            *words,
        ]

    def environment(self, directory: Path) -> dict[str, str]:
        """A whole environment whose home, caches and sockets lie in `directory`.

        Nothing of ours is passed on: root's variables are no business of this account.
        """
        return {
            "PATH": SEARCH_PATH,
            "LANG": "C.UTF-8",
            "HOME": str(directory),
            "TMPDIR": str(directory / "tmp"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "XDG_CONFIG_HOME": str(directory / "config"),
            "XDG_CACHE_HOME": str(directory / "cache"),
            "XDG_DATA_HOME": str(directory / "data"),
        }

    def own(self, *paths: Path) -> None:
        """Gives `paths` to this account."""
        if not self.is_self:
            for path in paths:
                os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def make_directory(self, path: Path) -> Path:
        """A new directory that only this account (and root) can enter. Its parent exists."""
        path.mkdir(mode=0o700)
        self.own(path)
        return path

    def make_home(self, prefix: str = "replicator-demo-") -> Path:
        """A new private directory below /var/tmp, with what `environment` names inside.

        Its path is short: a unix socket's has at most 107 bytes.
        """
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=PARENT_DIRECTORY))
        self.own(home)
        for name in ("tmp", "run", "config", "cache", "data"):
            self.make_directory(home / name)
        return home


def unprivileged_account() -> Account:
    """Whoever we are, unless that is root: then `nobody`, with the group that may use KVM."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), (), is_self=True)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise UsageError(
            "this machine has no user `nobody` to run the demo as",
            hint="start it as an ordinary user",
        ) from None
    return Account(nobody.pw_uid, nobody.pw_gid, _kvm_groups(), is_self=False)


def _kvm_groups() -> tuple[int, ...]:
    """The group of /dev/kvm, where it lets a group in that is not root's own."""
    try:
        found = KVM_DEVICE.stat()
    except OSError:
        return ()
    group_may = stat.S_IRGRP | stat.S_IWGRP
    return (found.st_gid,) if found.st_gid and found.st_mode & group_may == group_may else ()


def require_reachable(path: Path, account: Account) -> None:
    """Raises UsageError if `account` could not read `path`. Looks at permission bits, not ACLs."""
    if account.is_self:
        return
    real = path.resolve()
    for step in (real, *real.parents):
        needed = stat.S_IXOTH if step.is_dir() else stat.S_IROTH
        found = step.stat()
        if found.st_uid != account.uid and not found.st_mode & needed:
            raise UsageError(
                f"{path} is out of reach for an unprivileged user: {step} does not let others in",
                hint="move the checkout to a directory that everybody may enter, or start this "
                "as an ordinary user",
            )


def require_program(name: str, *, package: str) -> str:
    """The full path of a program. Raises UsageError that names Debian's package."""
    found = shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise UsageError(f"the program {name} is missing", hint=f"apt-get install {package}")
    return found
