# SPDX-License-Identifier: Apache-2.0
"""Which names groups, disks, agents and labels may have. No I/O.

Names become file names, NBD export names, metric labels and certificate names, so the rule is
narrow: ASCII letters, digits, `.`, `_`, `-`, beginning with a letter or digit, 63 at most. It is
checked where a name comes in (config, wire, control); past that, names are trusted.

A label is a person's text. What it has to be kept apart from is for replicator.base.pointtext.
"""

from __future__ import annotations

import re

from replicator.base.errors import UsageError

LABEL_BYTES_MAX = 128

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
NAME_RULE = "letters, digits, '.', '_' and '-', beginning with a letter or digit, 63 at most"


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def check_name(kind: str, text: str) -> str:
    """`text` itself, if it is a name. `kind` ("group", "disk") is for the UsageError."""
    if not is_name(text):
        raise UsageError(f"{text[:80]!r} cannot be a {kind} name", hint=f"names are {NAME_RULE}")
    return text


def check_label_form(text: str) -> str:
    """`text` itself, if it has the form of a label. Raises UsageError."""
    if not text or text != text.strip() or not text.isprintable():
        raise UsageError(
            f"{text[:80]!r} cannot be a label", hint="labels are printable, with no space at an end"
        )
    if len(text.encode("utf-8", "surrogatepass")) > LABEL_BYTES_MAX:
        raise UsageError(
            f"the label {text[:20]!r}… is too long", hint=f"at most {LABEL_BYTES_MAX} bytes"
        )
    return text
