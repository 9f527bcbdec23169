# SPDX-License-Identifier: Apache-2.0
"""Guests that are files: DIR/DOMAIN.frozen exists while the guest is frozen.

Run as a program it is the thaw watchdog for such guests. Its fault model: while DIR/DOMAIN.stuck
exists a thaw fails, as that of a guest agent that does not answer; each thaw is noted in DIR/thaws.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agent.quiesce.guard import ThawGuard
from agent.quiesce.watch import Word
from agent.quiesce.watchdog import ThawError, run

SECOND = 1_000_000_000


def is_frozen(directory: Path, domain: str) -> bool:
    return (directory / f"{domain}.frozen").exists()


def freeze(directory: Path, domain: str) -> int:
    (directory / f"{domain}.frozen").touch()
    return 1


def thaw(directory: Path, domain: str) -> int:
    if (directory / f"{domain}.stuck").exists():
        raise ThawError("the guest agent does not answer")
    with (directory / "thaws").open("a") as thaws:
        thaws.write(f"{domain}\n")
    try:
        (directory / f"{domain}.frozen").unlink()
    except FileNotFoundError:
        return 0
    return 1


def watchdog_command(directory: Path, *domains: str, timeout_ns: int = 10 * SECOND) -> list[str]:
    return [
        *(sys.executable, "-m", "tests.agent.freezing", "watch"),
        *(str(directory), str(timeout_ns), *domains),
    ]


async def freeze_and_hang(directory: Path, domain: str) -> None:
    """What an agent does up to the cut; then nothing more ever comes from it."""
    guard = await ThawGuard.start(watchdog_command(directory, domain))
    guard.say(Word.FREEZING)
    freeze(directory, domain)
    guard.say(Word.RETURNED)
    print(guard.pid, flush=True)
    await asyncio.Event().wait()


def main(what: str, directory: Path, rest: list[str]) -> None:
    match what:
        case "watch":
            timeout_ns, *domains = rest
            run(domains, int(timeout_ns), lambda domain: thaw(directory, domain))
        case "agent":
            asyncio.run(freeze_and_hang(directory, rest[0]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
