# SPDX-License-Identifier: Apache-2.0
"""Errors that people see: one class for each documented exit code. No I/O.

The message says what happened and to what; `hint` says what to do. The command line prints
`error: MESSAGE` and `hint: HINT` on stderr and ends with `exit_code`; the control API and the
wire carry `name` and both texts, and `from_name` makes the same class again at the far end.
A class is a mishap of the outside world, never a bug of ours: bugs are asserts and plain
exceptions, and end in a traceback.

Exit codes (documented in docs/cli.md; tools depend on them):
1 anything else, 2 config and usage, 10 unknown name, 11 owned by another, 12 refused identity,
13 damage, 14 no point in range, 15 no space, 16 fenced, 17 other version, 75 try again later.
"""

from __future__ import annotations

from typing import ClassVar


class ReplicatorError(Exception):
    """Base of all mishaps. `exit_code` and `name` belong to the class and never change."""

    exit_code: ClassVar[int] = 1
    name: ClassVar[str] = "failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(ReplicatorError):
    """Config, arguments, or a command sent to the daemon that does not serve it."""

    exit_code = 2
    name = "usage"


class NotFoundError(ReplicatorError):
    """No such group, point, view, domain or disk."""

    exit_code = 10
    name = "not-found"


class OwnedError(ReplicatorError):
    """A second daemon, a second agent, a rollback while a source is connected."""

    exit_code = 11
    name = "owned"


class IdentityError(ReplicatorError):
    """A certificate or the name it claims was refused."""

    exit_code = 12
    name = "identity"


class DamageError(ReplicatorError):
    """Bytes that fail their checksum. The message names file and offset."""

    exit_code = 13
    name = "damage"


class NoPointError(ReplicatorError):
    """No recovery point in the range that was asked for."""

    exit_code = 14
    name = "no-point"


class NoSpaceError(ReplicatorError):
    """The disk, or the budget that was set for it, is used up."""

    exit_code = 15
    name = "no-space"


class FencedError(ReplicatorError):
    """A newer generation or stream exists; this one stays closed for ever."""

    exit_code = 16
    name = "fenced"


class VersionError(ReplicatorError):
    """A format or protocol version that this program does not speak."""

    exit_code = 17
    name = "version"


class UnreachableError(ReplicatorError):
    """A peer or daemon that does not answer. Trying again later may help."""

    exit_code = 75
    name = "unreachable"


_BY_NAME: dict[str, type[ReplicatorError]] = {
    kind.name: kind
    for kind in (
        ReplicatorError,
        UsageError,
        NotFoundError,
        OwnedError,
        IdentityError,
        DamageError,
        NoPointError,
        NoSpaceError,
        FencedError,
        VersionError,
        UnreachableError,
    )
}


def from_name(name: str, message: str, hint: str = "") -> ReplicatorError:
    """The error that a peer reported by `name`; an unknown name is a plain failure."""
    return _BY_NAME.get(name, ReplicatorError)(message, hint=hint)
