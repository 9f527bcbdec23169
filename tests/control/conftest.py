# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.control.daemon import Daemon
from tests.control.services import Audited, CannedReceiver, serve


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    made = Daemon(tmp_path / "receiver.sock", CannedReceiver(), Audited())
    server = await serve(made.path, made.receiver, made.audit)
    yield made
    await server.close()
