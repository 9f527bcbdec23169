# SPDX-License-Identifier: Apache-2.0
"""What a text for a point says, and which texts may become labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.errors import UsageError
from replicator.base.names import check_label_form
from replicator.base.pointtext import PointSpec, check_label, is_plain, label_text, parse

NOW_NS = 1_772_366_400_000_000_000

LABELS = (
    "before upgrade",
    "vor dem Ärger",
    "1",
    "latest of all",
    "yesterday",
    "2026-03-01",
    "long ago",
    "14:00 lunch",
    "label",
    "Label:x",
    "x" * 128,
)
NAMES_OF_OTHERS = (
    "latest",
    "Latest",
    "latest application",
    "now",
    "10m ago",
    "1h 30m ago",
    "-10m",
    "5 parsecs ago",
    "2026-03-01T12:00:00Z",
    "2026-03-01 12:00",
    "2026-13-01 12:00",
    "2026-03-01 12:00 CET",
    "9999-12-31 23:59",
    "14:00",
    "99:00",
    "14:00 CET",
    "yesterday 14:00",
    "monday 14:00",
    "#1",
    "#",
    "#1+2w",
    "label:",
    "label:x",
    "label:latest",
)


@pytest.mark.parametrize("text", LABELS)
def test_labels_say_themselves(text: str) -> None:
    assert check_label(text) == text
    assert label_text(text) == text
    assert parse(text, NOW_NS).label == text


@pytest.mark.parametrize("text", NAMES_OF_OTHERS)
def test_what_names_something_else_or_looks_like_it_cannot_become_a_label(text: str) -> None:
    with pytest.raises(UsageError, match="read as something else") as caught:
        check_label(text)
    assert caught.value.hint
    assert label_text(text) == f"label:{text}"
    assert parse(f"label:{text}", NOW_NS).label == text, "one from before is reached all the same"


@pytest.mark.parametrize("text", ["", " a", "a\nb", "x" * 129])
def test_what_has_not_the_form_of_one(text: str) -> None:
    with pytest.raises(UsageError, match="label"):
        check_label(text)


@given(st.one_of(st.text(max_size=30), st.sampled_from(NAMES_OF_OTHERS + LABELS)))
def test_a_name_never_means_two_things(text: str) -> None:
    """Whoever types a label that may be made gets the point with it, whenever and wherever."""
    try:
        check_label_form(text)
    except UsageError:
        return
    said = label_text(text)
    for now_ns in (0, NOW_NS, NOW_NS + 86_400_000_000_000 // 3):
        for zone in (None, "UTC", "Asia/Kathmandu", "Nowhere/Land"):
            assert parse(said, now_ns, zone) == PointSpec(said, label=text)
            if not is_plain(text):
                try:
                    assert parse(text, now_ns, zone).label != text
                except UsageError:
                    continue


def test_words_in_any_case() -> None:
    assert parse(" Latest ", NOW_NS).word == "latest"
    assert parse("latest  Application", NOW_NS).word == "latest application"
    with pytest.raises(UsageError, match="names no label"):
        parse("label:", NOW_NS)
