# SPDX-License-Identifier: Apache-2.0
"""Our own programs, for an account that may not read this checkout.

Root clones into /root as a rule, and nobody else can enter /root. The installer then puts the
virtualenv where others can read it (see deploy/install-dependencies.sh), but the packages stay in
the checkout, so that a change is seen at once. So where the account cannot read them, they are
copied into its home (a few megabytes) and found there before anything else. What runs is what the
checkout holds now, never an installed copy of an older state.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from replicator.base.errors import UsageError
from replicator.demo.account import Account, require_reachable

PACKAGES = ("agent", "journal", "receiver", "replicator")
_SOURCE = Path(__file__).resolve().parents[2]


def own_python(account: Account) -> Path:
    """This interpreter with its libraries, by a path that `account` can follow.

    Raises UsageError where there is none: `.venv` may be a link to a virtualenv in a better place,
    but a virtualenv (or the Python below it) that only root can enter is of no use.
    """
    environment = Path(sys.prefix).resolve()
    python = environment / "bin" / Path(sys.executable).name
    for path in (environment, python):
        require_reachable(path, account)
    return python


def own_code(account: Account, home: Path, source: Path = _SOURCE) -> Path | None:
    """A new directory in `home` that holds our packages; None if `account` can read `source`."""
    try:
        for package in PACKAGES:
            require_reachable(source / package / "__init__.py", account)
    except UsageError:
        return _copy(account, home, source)
    return None


def _copy(account: Account, home: Path, source: Path) -> Path:
    target = account.make_directory(home / "code")
    for package in PACKAGES:
        shutil.copytree(
            source / package, target / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    account.own(*target.rglob("*"))
    return target
