# SPDX-License-Identifier: Apache-2.0
"""Entry of the `replicator` command: global options, and errors as exit codes.

Every mishap ends in `error: …` and perhaps `hint: …` on stderr with its documented code. A
traceback means a bug of ours. A reader that closes stdout early (`| head`) is click's to handle: it
ends us quietly with 1.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import click

from replicator import __version__
from replicator.base.errors import ReplicatorError, UsageError
from replicator.base.mishaps import mishap
from replicator.base.report import report
from replicator.base.standard import STDOUT, occupy_standard_streams
from replicator.cli import (
    audit,
    clock,
    forget,
    history,
    journal,
    local,
    orders,
    reload,
    scrub,
    setup,
    status,
    view,
)
from replicator.cli.invocation import Invocation

INTERRUPTED = 130
FAILED_WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # stdout has no file name


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    metavar="PATH",
    envvar="REPLICATOR_SOCKET",
    help="Control socket of the daemon (default: the one that serves the command).",
)
@click.option("--json", "is_json", is_flag=True, help="Results as JSON on stdout.")
@click.version_option(__version__, prog_name="replicator")
@click.pass_context
def replicator(context: click.Context, socket: str | None, *, is_json: bool) -> None:
    """Continuous data protection for KVM guests."""
    context.obj = Invocation(socket, is_json)


for command in (
    *orders.COMMANDS,
    *status.COMMANDS,
    *scrub.COMMANDS,
    *view.COMMANDS,
    *history.COMMANDS,
    *clock.COMMANDS,
    *audit.COMMANDS,
    *journal.COMMANDS,
    *local.COMMANDS,
    *reload.COMMANDS,
    *forget.COMMANDS,
    *setup.COMMANDS,
):
    replicator.add_command(command)


def run(arguments: Sequence[str]) -> int:
    """Runs one command; its exit code."""
    try:
        outcome = replicator.main(list(arguments), "replicator", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:  # its message is the whole help
        click.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.ClickException as error:
        return report(_usage(error))
    except ReplicatorError as error:
        return report(error)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except OSError as error:
        if error.filename is None and error.errno not in FAILED_WRITES:
            raise
        return report(mishap(error))
    return outcome if isinstance(outcome, int) else 0


def _usage(error: click.ClickException) -> UsageError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "replicator"
    return UsageError(error.format_message().rstrip("."), hint=f"see {path} --help")


def main() -> None:
    if STDOUT in occupy_standard_streams():
        sys.exit(
            report(
                UsageError(
                    "stdout is closed: nothing was done, as there is no place for what it says",
                    hint="send it to /dev/null if it is not wanted",
                )
            )
        )
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
