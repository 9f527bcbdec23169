# SPDX-License-Identifier: Apache-2.0
"""TCP addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.address import Address


@pytest.mark.parametrize("text", ["h:1", "[::1]:65535", "192.0.2.1:0", "a-b.c_d.example:4433"])
def test_an_address_prints_as_it_was_written(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", ":1", "h:", "h:x", "h:65536", "h:-1", "h: 1", "h:1\n", "::1", "[::1", "[h]:1", "h:1:2"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Address.parse(text)


def test_the_port_may_be_left_out_where_there_is_a_default() -> None:
    assert Address.parse("[::1]", default_port=7) == Address("::1", 7)
    assert hash(Address("h", 1)) == hash(Address.parse("h:1"))
    with pytest.raises(ValueError, match="lacks a port"):
        Address.parse("[::1]")


@given(st.text(max_size=20))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        found = Address.parse(text, default_port=1)
    except ValueError:
        return
    assert Address.parse(str(found)) == found
