# SPDX-License-Identifier: Apache-2.0
"""The commands that need no daemon: config check, pki, demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import note, print_json
from replicator.cli.paths import path_type

if TYPE_CHECKING:
    from replicator.base.pki import Issued

folder_option = click.option(
    "--dir",
    "folder",
    metavar="DIR",
    type=path_type,
    required=True,
    help="Folder of the CA.",
)


@click.group()
def config() -> None:
    """Look at configuration files."""


@config.command("check")
@click.argument("file", type=path_type)
@click.option(
    "--start", is_flag=True, help="End as a start of the daemon would, where it would be refused."
)
@takes_json
def config_check(invocation: Invocation, file: Path, start: bool) -> None:
    """Check FILE, an agent's or a receiver's, and whether it fits this machine.

    Errors of the file end with code 2. What does not fit this machine is a warning; with --start
    what would keep the daemon from starting is an error, with the code of that start.
    """
    from replicator.cli.config_check import refusals, warnings
    from replicator.config import AgentConfig, load_any

    loaded = load_any(file)
    role = "agent" if isinstance(loaded, AgentConfig) else "receiver"
    refused, told = refusals(loaded), warnings(loaded)
    told += [str(each) for each in refused if not start and each.message not in told]
    for warning in told:
        note(f"warning: {warning}")
    if start and refused:
        for error in refused[1:]:
            note(f"error: {error}")
        raise refused[0]
    if invocation.is_json:
        print_json({"file": str(file), "role": role, "warnings": told})
    else:
        click.echo(f"{file}: a valid configuration of the {role}")


@click.group()
def pki() -> None:
    """Make certificates for agents and receivers."""


@pki.command("init")
@folder_option
@takes_json
def pki_init(invocation: Invocation, folder: Path) -> None:
    """Make a certificate authority in DIR: ca.crt and ca.key."""
    from replicator.base.pki import init_ca

    _print_issued(invocation, init_ca(folder))


@pki.command("issue")
@click.argument("name")
@folder_option
@click.option("--san", "sans", multiple=True, help="Further DNS name or IP address; repeatable.")
@takes_json
def pki_issue(invocation: Invocation, name: str, folder: Path, sans: tuple[str, ...]) -> None:
    """Make NAME.crt and NAME.key in DIR, for the agent or receiver called NAME.

    A receiver's certificate must hold the host name that agents connect to.
    """
    from replicator.base.pki import issue

    _print_issued(invocation, issue(folder, name, sans=sans))


def _print_issued(invocation: Invocation, issued: Issued) -> None:
    if invocation.is_json:
        print_json({"certificate": str(issued.certificate), "key": str(issued.key)})
    else:
        click.echo(f"{issued.certificate}\n{issued.key}")


@click.command()
def demo() -> None:
    """Protect, damage, roll back and boot a real guest, as one story."""
    from replicator.demo.story import main

    main()


COMMANDS = (config, pki, demo)
