# SPDX-License-Identifier: Apache-2.0
"""Our CA, certificate and key while a daemon runs: read again when their files change.

A certificate is rotated by putting new files in the place of the old ones, one after the other. So
between two looks there may be a new certificate beside an old key. What is in use is therefore
replaced as a whole, and only by three files that load together: till then the old ones go on,
`problem` says why, and each look tries again. Connections that stand keep the identity with which
they were made; who connects from then on meets the new one.

That a file has changed is told by its identity (device, inode), size and time; the daemons look
every few seconds, and whenever a reload is ordered. Contents are not compared: three small files
that are read once too often cost nothing.

Concurrency: one event loop. To load takes a millisecond.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from replicator.base.certificates import EXPIRES_SOON, read_certificates
from replicator.base.clock import NS_PER_S
from replicator.base.errors import IdentityError, ReplicatorError
from replicator.base.mishaps import mishap

DAY_SECONDS = 24 * 3600.0

Make = Callable[[Path, Path, Path], ssl.SSLContext]
Files = tuple[Path, Path, Path]
"""CA, certificate, key."""
Tls = Callable[[], ssl.SSLContext]
"""The context for the next connection."""
_Look = tuple[tuple[int, int, int, int] | None, ...]

_log = logging.getLogger(__name__)


class Credentials:
    """`make` checks the files and makes the context of them. Raises as `make` does."""

    def __init__(self, make: Make, ca: Path, certificate: Path, key: Path) -> None:
        self._make = make
        self._files: Files = (ca, certificate, key)
        self._seen: _Look = tuple(_identity(path) for path in self._files)
        self._context = make(ca, certificate, key)
        self.problem = ""
        """Why what is in use is not what the files hold; empty if it is."""
        self.not_after = _end(self._files)
        """When the first of certificate and CA expires."""
        self._warned_at = float("-inf")

    def tls(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._context

    def check(self, files: Files) -> None:
        """Raises what `refresh(files, at_once=True)` would raise, and changes nothing."""
        self._make(*files)
        _end(files)

    def refresh(self, files: Files | None = None, *, at_once: bool = False) -> bool:
        """Looks at the files, these from now on if there are any, and takes over what has changed.
        True if something was. `at_once`: a person asked for it, so what does not load is raised,
        and nothing has changed."""
        files = files or self._files
        seen = tuple(_identity(path) for path in files)
        if (files, seen) == (self._files, self._seen) and not self.problem:
            return False
        try:
            context, not_after = self._make(*files), _end(files)
        except (ReplicatorError, OSError) as error:
            text = str(error if isinstance(error, ReplicatorError) else mishap(error))
            if text != self.problem:
                _log.warning("credentials.kept", extra={"reason": text})
            self.problem = text
            if at_once:
                raise
            return False
        self._files, self._seen = files, seen
        self._context, self.not_after, self.problem = context, not_after, ""
        self._warned_at = float("-inf")
        _log.info("credentials.replaced", extra={"not_after": f"{not_after:%Y-%m-%dT%H:%M:%SZ}"})
        return True

    @property
    def not_after_ns(self) -> int:
        return int(self.not_after.timestamp()) * NS_PER_S

    @property
    def warning(self) -> str:
        """What a person had better know now; empty if there is nothing."""
        if self.problem:
            return f"the certificate in use is not the one on the disk: {self.problem}"
        now = datetime.now(UTC)
        if now >= self.not_after:
            return f"the certificate expired on {self.not_after:%Y-%m-%d %H:%M} UTC"
        if now >= self.not_after - EXPIRES_SOON:
            days = (self.not_after - now).days
            return f"the certificate expires on {self.not_after:%Y-%m-%d %H:%M} UTC, in {days} days"
        return ""

    def look(self, now_seconds: float) -> None:
        """What a daemon does now and then: `refresh`, and once a day the warning, if there is
        one. `now_seconds` is of any clock that does not go back."""
        self.refresh()
        if self.warning and now_seconds >= self._warned_at + DAY_SECONDS:
            self._warned_at = now_seconds
            _log.warning("credentials.warning", extra={"reason": self.warning})


def _end(files: Files) -> datetime:
    """Raises IdentityError, OSError."""
    ca, certificate, _ = files
    ends = [read_certificates(certificate).not_after]
    with suppress(IdentityError):  # OpenSSL takes kinds of files that this reader does not
        ends.append(read_certificates(ca).not_after)
    return min(ends)


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
