# SPDX-License-Identifier: Apache-2.0
"""Which zone the command sends along."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.cli.zone import local_zone


@pytest.mark.parametrize(
    ("stated", "sent"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":Europe/Berlin", "Europe/Berlin"),
        ("/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        ("UTC", "UTC"),
        ("", "UTC"),
        (":", "UTC"),
        ("EST5EDT", "EST5EDT"),
        ("EST5", "-05:00"),
        ("<+0545>-5:45", "+05:45"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", "CET-1CEST,M3.5.0,M10.5.0/3"),
    ],
)
def test_what_is_set_goes_along_as_it_is(stated: str, sent: str) -> None:
    assert local_zone({"TZ": stated}) == sent


def test_else_it_is_what_localtime_links_to(tmp_path: Path) -> None:
    linked, copied = tmp_path / "linked", tmp_path / "copied"
    linked.symlink_to("/usr/share/zoneinfo/Asia/Kathmandu")
    copied.write_bytes(b"TZif2")
    assert local_zone({}, linked) == "Asia/Kathmandu"
    assert local_zone({}, tmp_path / "none") == "UTC", "as for the C library"
    assert local_zone({}, copied) is None, "a zone is never made up"
