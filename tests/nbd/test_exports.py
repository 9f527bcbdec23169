# SPDX-License-Identifier: Apache-2.0
"""What an export may claim, and what a client is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from replicator.nbd.constants import TransmissionFlag
from replicator.nbd.exports import ConnectionEnd, EndKind, ExportInfo


@pytest.mark.parametrize(
    "claim",
    [
        {"size_bytes": 1000},
        {"size_bytes": -512},
        {"size_bytes": 1 << 63},
        {"size_bytes": 512, "min_block_bytes": 513},
        {"size_bytes": 512, "min_block_bytes": 0},
        {"size_bytes": 8192, "min_block_bytes": 8192, "preferred_block_bytes": 4096},
        {"size_bytes": 512, "max_block_bytes": 64 << 20},
        {"size_bytes": 512, "max_block_bytes": 6000},
        {"size_bytes": 512, "preferred_block_bytes": 5000},
        {"size_bytes": 512, "description": "é" * 2049},
    ],
)
def test_claims_that_no_client_could_work_with_are_refused(claim: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"block size|description"):
        ExportInfo(**claim)


def test_an_empty_disk_and_a_byte_aligned_one_are_fine() -> None:
    assert ExportInfo(size_bytes=0).size_bytes == 0
    assert ExportInfo(size_bytes=1001, min_block_bytes=1).size_bytes == 1001


def test_flags_say_what_the_export_can_and_nothing_else() -> None:
    plain = ExportInfo(size_bytes=512).transmission_flags(structured=False)
    assert plain == TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH
    able = ExportInfo(
        size_bytes=512, can_fua=True, can_trim=True, can_write_zeroes=True, multi_conn=True
    )
    assert able.transmission_flags(structured=True) == (
        TransmissionFlag.HAS_FLAGS
        | TransmissionFlag.SEND_FLUSH
        | TransmissionFlag.SEND_FUA
        | TransmissionFlag.SEND_TRIM
        | TransmissionFlag.SEND_WRITE_ZEROES
        | TransmissionFlag.SEND_DF
        | TransmissionFlag.CAN_MULTI_CONN
    )


def test_a_read_only_export_offers_no_command_that_writes() -> None:
    info = ExportInfo(size_bytes=512, read_only=True, can_trim=True, can_write_zeroes=True)
    flags = info.transmission_flags(structured=False)
    assert flags & TransmissionFlag.READ_ONLY
    assert not flags & (TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES)


@pytest.mark.parametrize(
    ("kind", "mid_request", "unanswered", "unsent_bytes", "clean"),
    [
        (EndKind.EOF, False, 0, 0, True),
        (EndKind.DISC, False, 0, 0, True),
        (EndKind.EOF, True, 0, 0, False),
        (EndKind.EOF, False, 1, 0, False),
        (EndKind.EOF, False, 0, 16, False),
        (EndKind.ERROR, False, 0, 0, False),
        (EndKind.CLOSED, False, 0, 0, False),
    ],
)
def test_an_end_is_clean_if_nothing_was_under_way(
    kind: EndKind, mid_request: bool, unanswered: int, unsent_bytes: int, clean: bool
) -> None:
    end = ConnectionEnd(
        kind=kind, mid_request=mid_request, unanswered=unanswered, unsent_bytes=unsent_bytes
    )
    assert end.clean is clean
