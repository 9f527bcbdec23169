# SPDX-License-Identifier: Apache-2.0
"""`setup --print-units`: what comes with the programs and belongs elsewhere on the machine.

The files ride in the wheel, so an installation needs no checkout. Where they go is the
distribution's convention and the operator's choice: nothing is copied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

import replicator
from replicator.base.errors import NotFoundError, UsageError
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import print_json, print_table

_PLACES = (
    ("systemd/replicator-receiver.service", "/etc/systemd/system/replicator-receiver.service"),
    ("systemd/replicator-splitter.service", "/etc/systemd/system/replicator-splitter.service"),
    ("systemd/replicator-agent.service", "/etc/systemd/system/replicator-agent.service"),
    ("sysusers.d/replicator.conf", "/etc/sysusers.d/replicator.conf"),
    ("receiver.toml", "/etc/replicator/receiver.toml"),
    ("agent.toml", "/etc/replicator/agent.toml"),
)


@dataclass(frozen=True, slots=True)
class Shipped:
    """A file that came with the programs, and where it goes on a machine that follows the docs."""

    file: Path
    place: str


def shipped() -> Sequence[Shipped]:
    """Raises NotFoundError where an installation lacks one."""
    folder = _folder()
    found = [Shipped(folder / name, place) for name, place in _PLACES]
    for each in found:
        if not each.file.is_file():
            raise NotFoundError(f"{each.file} is not there", hint="install the programs anew")
    return found


def _folder() -> Path:
    """In the wheel, or in the checkout that an editable installation points to."""
    package = Path(replicator.__file__).parent
    inside = package / "deploy"
    return inside if inside.is_dir() else package.parent / "deploy"


@click.command()
@click.option("--print-units", is_flag=True, help="Name each file, and where it goes.")
@takes_json
def setup(invocation: Invocation, *, print_units: bool) -> None:
    """Units, system user and sample configurations that came with these programs."""
    if not print_units:
        raise UsageError("setup needs --print-units", hint="it copies nothing by itself")
    found = shipped()
    if invocation.is_json:
        print_json([{"file": str(each.file), "place": each.place} for each in found])
        return
    print_table(("FILE", "PLACE"), [(str(each.file), each.place) for each in found])


COMMANDS = (setup,)
