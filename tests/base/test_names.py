# SPDX-License-Identifier: Apache-2.0
"""Names and labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.errors import UsageError
from replicator.base.names import check_label_form, check_name, is_name


@pytest.mark.parametrize("text", ["a", "0", "shop-db.v2_x", "A" * 63])
def test_names(text: str) -> None:
    assert check_name("group", text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".a", "-a", "_a", "a/b", "a b", "a\n", "é", "a\0", "A" * 64, "٣"]
)
def test_what_is_no_name_is_named_in_the_error(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be a disk name"):
        check_name("disk", text)


@given(st.text())
def test_a_name_is_one_path_component_and_safe_in_messages(text: str) -> None:
    if is_name(text):
        assert text.isascii()
        assert text.isprintable()
        assert "/" not in text
        assert text not in (".", "..")


@pytest.mark.parametrize("text", ["before upgrade", "vor dem Ärger", "1", "10m ago", "x" * 128])
def test_forms_of_labels(text: str) -> None:
    assert check_label_form(text) == text


@pytest.mark.parametrize(
    "text", ["", " a", "a ", "a\nb", "\x1b[31m", "x" * 129, "é" * 65, "\ud800"]
)
def test_what_has_not_the_form_of_a_label(text: str) -> None:
    with pytest.raises(UsageError):
        check_label_form(text)
