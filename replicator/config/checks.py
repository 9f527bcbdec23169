# SPDX-License-Identifier: Apache-2.0
"""Checks that both config files share. No I/O.

A check yields what it finds; whoever loads the file raises the first. `Fault` is the finding
before it knows its file.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from replicator.base.names import NAME_RULE, is_name

UNIX_PATH_BYTES_MAX = 107  # sun_path holds 108 with its NUL


@dataclass(frozen=True, slots=True)
class Fault:
    """The place inside the file, what is wrong there, and what to do."""

    path: str
    message: str
    hint: str = ""


def name_faults(path: str, kind: str, text: str) -> Iterator[Fault]:
    """`kind` with its article, for the sentence."""
    if not is_name(text):
        yield Fault(path, f"{text[:80]!r} cannot be {kind}'s name", f"names are {NAME_RULE}")


def duplicates(path: str, key: str, names: Sequence[str]) -> Iterator[Fault]:
    """Names of `PATH[INDEX].KEY` that stand there twice."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            at = f"{path}[{index}].{key}" if key else f"{path}[{index}]"
            yield Fault(at, f"{name!r} is the name of {path}[{first[name]}] already")


def same_path_faults(paths: Mapping[str, Path]) -> Iterator[Fault]:
    """No two of `paths` (by place in the file) may be the same."""
    first: dict[str, str] = {}
    for place, path in paths.items():
        other = first.setdefault(posixpath.normpath(path), place)
        if other != place:
            yield Fault(place, f"{path} is {other} already; each needs its own")


def socket_faults(paths: Mapping[str, Path]) -> Iterator[Fault]:
    """Sockets need paths of their own, short enough for the kernel."""
    for place, path in paths.items():
        size = len(bytes(path))
        if size > UNIX_PATH_BYTES_MAX:
            yield Fault(
                place,
                f"{path} is {size} bytes long; a unix socket may have {UNIX_PATH_BYTES_MAX}",
            )
    yield from same_path_faults(paths)
