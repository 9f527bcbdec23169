# SPDX-License-Identifier: Apache-2.0
"""What a supervision makes of whatever it caught.

A supervision is the one place that may catch everything. It stands where the trouble of one part
must not become that of another: around each group's work, a reload, an errand of the daemon. What
it caught becomes words once, here, and is named in the log with the part that it was:

    a mishap (ReplicatorError)                  is said as it is
    the operating system's refusal (OSError)    in the words of base.mishaps
    anything else                               is a fault of the program: said to be one, with its
                                                traceback in the log

A reason that is kept is told to many, again and again. Each time as an error of its own (`anew`):
an error that is raised twice keeps the frames of both, and with each further one grows.
"""

from __future__ import annotations

from replicator.base.errors import ReplicatorError, from_name
from replicator.base.mishaps import mishap

OF_THE_DISK = "look at the disk, and at the kernel's log of this machine"
OF_THE_PROGRAM = "this is a fault of the program; the log of the daemon holds its traceback"


def words_of(error: Exception) -> ReplicatorError:
    """What to say of it, to people and to peers."""
    if isinstance(error, ReplicatorError):
        return error
    if isinstance(error, OSError):
        said = mishap(error)
        said.hint = said.hint or OF_THE_DISK
        return said
    return ReplicatorError(f"unexpected {type(error).__name__}: {error}", hint=OF_THE_PROGRAM)


def is_bug(error: Exception) -> bool:
    """Whether its traceback belongs into the log."""
    return not isinstance(error, ReplicatorError | OSError)


def anew(error: ReplicatorError) -> ReplicatorError:
    """The same, to be raised."""
    return from_name(error.name, error.message, error.hint)
