# SPDX-License-Identifier: Apache-2.0
"""`replicator audit`: who ordered what at a receiver; and whether that record was tampered with.
The receiver answers; with a data_dir, its files do, and no daemon is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from replicator.base.errors import DamageError, NotFoundError, UsageError
from replicator.cli.invocation import Invocation, takes_json
from replicator.cli.output import (
    NONE,
    confirm,
    note,
    print_json,
    print_table,
    require_terminal,
)
from replicator.cli.paths import path_type
from replicator.cli.zone import local_zone

if TYPE_CHECKING:
    from replicator.control.types import AuditFault, AuditRecord, AuditVerdict

LIMIT = 1000
ARGUMENT_CHARS = 60


@click.group()
def audit() -> None:
    """Show and verify the record of orders (receiver)."""


@audit.command("list")
@click.option("--since", metavar="TIME", help='RFC 3339 time or "10m ago"; inclusive.')
@click.option("--limit", type=click.IntRange(1, 10_000), default=LIMIT, show_default=True)
@click.option(
    "--dir",
    "data_dir",
    metavar="DATA_DIR",
    type=path_type,
    help="Of this data_dir, with no daemon.",
)
@takes_json
def audit_list(
    invocation: Invocation, since: str | None, limit: int, data_dir: Path | None
) -> None:
    """List the orders that changed something, oldest first."""
    from replicator.control.orders import AUDITED
    from replicator.control.requests import AuditRequest

    if data_dir is None:
        records = invocation.order(AUDITED, request=AuditRequest(since=since, limit=limit))
    else:
        records = _read(data_dir, since, limit)
    if invocation.is_json:
        print_json(records)
    elif records:
        headers = ("ENTRY", "TIME", "UID", "ORDER", "OBJECT", "OUTCOME", "ARGUMENT")
        print_table(headers, [_row(record) for record in records])
    else:
        note("the audit has no such entries")


@audit.command("verify")
@click.argument("data_dir", required=False, type=path_type)
@click.option("--expect-head", metavar="DIGEST", help="A digest that an entry must have.")
@takes_json
def audit_verify(invocation: Invocation, data_dir: Path | None, expect_head: str | None) -> None:
    """Verify the chain of the audit, here or of DATA_DIR with no daemon.

    Ends with code 13 where an entry was changed, removed or put in, or where a history ends before
    what the audit saw of it.
    """
    from replicator.control.orders import VERIFY_AUDIT

    if expect_head is not None and data_dir is None:
        raise UsageError("--expect-head needs DATA_DIR", hint="the files themselves are searched")
    if data_dir is not None:
        verdict = _verify(data_dir, expect_head)
    else:
        verdict = invocation.order(VERIFY_AUDIT)
    if invocation.is_json:
        print_json(verdict)
    else:
        click.echo(f"{verdict.entries} entries, head {verdict.head}")
        for fault in verdict.faults:
            note(f"fault: {_describe(fault)}")
    if count := len(verdict.faults):
        raise DamageError(
            f"{count} fault{'s' if count > 1 else ''} found",
            hint="an accident or somebody's doing; nothing was repaired",
        )


@audit.command("accept")
@click.option("--reason", metavar="TEXT", default="", help="Why; for the audit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@takes_json
def audit_accept(invocation: Invocation, reason: str, *, yes: bool) -> None:
    """Begin the audit anew where nothing is left of it (receiver).

    Orders are refused until then, or until it is put back and the receiver restarted. The break
    stays in the new one for ever.
    """
    from replicator.control.orders import ACCEPT_AUDIT
    from replicator.control.requests import AcceptAuditRequest

    if not reason.strip():
        raise UsageError("audit accept needs --reason TEXT")
    if not yes:
        require_terminal("audit accept", hint="give --yes")
        confirm("Is the audit lost, so that it cannot be put back?")
    done = invocation.order(ACCEPT_AUDIT, request=AcceptAuditRequest(reason=reason))
    if invocation.is_json:
        print_json(done)
    else:
        click.echo(f"the audit begins anew, without {done.lost_entries} entries that it once had")


def _read(data_dir: Path, since: str | None, limit: int) -> list[AuditRecord]:
    from receiver.audit.answers import list_audit
    from receiver.data_dir.layout import audit_dir
    from replicator.base.clock import SystemClock
    from replicator.base.moments import moment_of
    from replicator.base.storage import SystemStorage

    _check(data_dir)
    since_ns = None
    if since is not None:
        moment = moment_of(since.strip(), SystemClock().utc_ns(), local_zone())
        if moment is None:
            raise UsageError(f"{since!r} is no time")
        since_ns = moment.time_ns
    return list_audit(SystemStorage(), audit_dir(data_dir), since_ns, limit)


def _verify(data_dir: Path, expect_head: str | None) -> AuditVerdict:
    from receiver.audit.answers import audit_verdict, has_digest
    from receiver.check.places import histories_of
    from receiver.data_dir.layout import audit_dir, catalog_path
    from receiver.offline.audit_check import kept_link
    from receiver.offline.whole import sealed_stretches
    from replicator.base.storage import SystemStorage
    from replicator.control.types import AuditFault

    _check(data_dir)
    storage, directory = SystemStorage(), audit_dir(data_dir)
    histories = {
        place.group: sealed_stretches(storage, place) for place in histories_of(storage, data_dir)
    }
    kept = kept_link(catalog_path(data_dir.absolute()))
    verdict = audit_verdict(storage, directory, kept, histories)
    if expect_head is not None and not has_digest(storage, directory, expect_head):
        verdict.faults.append(
            AuditFault(file=None, offset=None, problem=f"no entry has the digest {expect_head}")
        )
    return verdict


def _check(data_dir: Path) -> None:
    if not (data_dir / "audit").is_dir():
        raise NotFoundError(f"{data_dir} has no audit", hint="name a receiver's data_dir")


def _describe(fault: AuditFault) -> str:
    at = "" if fault.file is None else f"{fault.file}: offset {fault.offset}: "
    return _plain(f"{at}{fault.problem}")


def _plain(text: str) -> str:
    """Whoever tampers with the audit shall not play tricks on a terminal."""
    return text if text.isprintable() else repr(text)[1:-1]


def _row(record: AuditRecord) -> tuple[str, ...]:
    argument = record.argument or record.message
    if len(argument) > ARGUMENT_CHARS:
        argument = argument[: ARGUMENT_CHARS - 1] + "…"
    return (
        str(record.sequence),
        record.time,
        NONE if record.uid is None else str(record.uid),
        _plain(record.order),
        _plain(record.object) or NONE,
        _plain(record.outcome),
        _plain(argument) or NONE,
    )


COMMANDS = (audit,)
