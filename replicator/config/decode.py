# SPDX-License-Identifier: Apache-2.0
"""From a TOML file to a config struct, with errors that a person can act on.

One pass finds unknown keys and says which known one is nearest; then msgspec converts and its
errors are put into words: file, path inside the file, what was found, what is wanted. A file is
read whole or refused; nothing is ever taken from a file that has an error.
"""

from __future__ import annotations

import difflib
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from replicator.base.errors import UsageError
from replicator.config.checks import Fault
from replicator.config.values import PARSERS, describe, parse_path

CONFIG_BYTES_MAX = 1 << 20
DIGITS_MAX = sys.int_info.default_max_str_digits
NEWLINE = b"\n"

Document = dict[str, Any]
T = TypeVar("T", bound=msgspec.Struct)


class ConfigError(UsageError):
    """A config file that cannot be used. `path` is the place inside it, "" for the whole file."""

    def __init__(self, file: Path, path: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{file}: {path}: {message}" if path else f"{file}: {message}", hint=hint)
        self.file = file
        self.path = path


def read_document(file: Path) -> Document:
    """The TOML of `file`. Raises ConfigError for whatever is wrong with it."""
    try:
        with file.open("rb") as stream:
            content = stream.read(CONFIG_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(
            file,
            "",
            "no such file",
            hint="name another file; `replicator setup --print-units` names samples",
        ) from None
    except OSError as error:
        raise ConfigError(file, "", f"cannot be read: {error.strerror}") from None
    if len(content) > CONFIG_BYTES_MAX:
        raise ConfigError(file, "", f"is longer than {CONFIG_BYTES_MAX} bytes")
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(file, "", f"line {line}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file, "", _syntax(str(error), content)) from None
    except RecursionError:
        raise ConfigError(file, "", "is nested too deeply") from None
    except ValueError:  # Python converts no longer ones, and tomllib does not look
        raise ConfigError(file, "", f"a number has over {DIGITS_MAX} digits") from None


def decode(file: Path, document: Document, kind: type[T]) -> T:
    """`document` as a `kind`; relative paths become absolute, from the folder of `file`."""
    for unknown in _unknown_keys(document, kind, ""):
        raise _unknown_key(file, unknown, kind)
    folder = file.absolute().parent

    def parse(wanted: Any, value: object) -> object:
        if wanted is Path:
            return folder / parse_path(value)
        parser = PARSERS.get(wanted)
        if parser is None:
            raise NotImplementedError(f"no parser for {wanted}")
        return parser(value)

    try:
        return msgspec.convert(document, kind, dec_hook=parse)
    except msgspec.ValidationError as error:
        raise _in_words(file, document, kind, str(error)) from None


def refuse(file: Path, faults: Iterable[Fault]) -> None:
    """Raises the first of `faults`, if there is one."""
    for fault in faults:
        raise ConfigError(file, fault.path, fault.message, hint=fault.hint)


def _syntax(message: str, content: bytes) -> str:
    """tomllib's sentence with the place first, and a number also for the end of the file."""
    found = re.fullmatch(r"(.*) \(at (.*)\)", message, re.DOTALL)
    if found is None:
        return message
    at_end = found[2] == "end of document"
    place = f"line {content.rstrip().count(NEWLINE) + 1}" if at_end else found[2]
    return f"{place}: {found[1]}"


# -- unknown keys ---------------------------------------------------------------------------------


class _Unknown(msgspec.Struct, frozen=True):
    path: str
    key: str
    known: tuple[str, ...]


def keys_of(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Each key of a table as the file spells it, with its type."""
    hints = get_type_hints(kind)
    return {field.encode_name: hints[field.name] for field in msgspec.structs.fields(kind)}


def table_type(wanted: Any) -> type[msgspec.Struct] | None:
    """The struct behind `X` or `tuple[X, ...]`; None for a plain value."""
    if get_origin(wanted) is tuple:
        wanted = get_args(wanted)[0]
    is_table = isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)
    return wanted if is_table else None


def _unknown_keys(table: Document, kind: type[msgspec.Struct], path: str) -> Iterator[_Unknown]:
    keys = keys_of(kind)
    for key, value in table.items():
        at = f"{path}.{key}" if path else key
        if key not in keys:
            yield _Unknown(at, key, tuple(keys))
            continue
        inner = table_type(keys[key])
        if inner is None:
            continue
        if isinstance(value, dict):
            yield from _unknown_keys(value, inner, at)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, dict):
                    yield from _unknown_keys(item, inner, f"{at}[{index}]")


def _unknown_key(file: Path, unknown: _Unknown, kind: type[msgspec.Struct]) -> ConfigError:
    near = difflib.get_close_matches(unknown.key, unknown.known, n=1)
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif home := _homes(unknown.key, kind):
        hint = f"{unknown.key!r} belongs in {home}"
    else:
        hint = "known here: " + ", ".join(unknown.known)
    return ConfigError(file, unknown.path, "unknown key", hint=hint)


def _homes(key: str, kind: type[msgspec.Struct]) -> str:
    """The tables of `kind` that have `key`, as the file writes their headers."""
    return " or ".join(header for header, table in tables_of(kind) if key in keys_of(table))


def tables_of(
    kind: type[msgspec.Struct], path: str = ""
) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Each table below `kind`: its header (`[agent]`, `[[group.disk]]`) and its struct."""
    for key, wanted in keys_of(kind).items():
        inner = table_type(wanted)
        if inner is not None:
            name = f"{path}{key}"
            yield (f"[[{name}]]" if get_origin(wanted) is tuple else f"[{name}]"), inner
            yield from tables_of(inner, f"{name}.")


# -- ill-typed values -----------------------------------------------------------------------------

_PLACE = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(.+)`, got `.+`")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")  # each step of a path: a key or an index
_MISSING = re.compile(r"Object missing required field `(.+)`")
_WORDS = {
    "str": "a string",
    "int": "an integer",
    "bool": "true or false",
    "array": "an array",
    "object": "a table",
}


def _in_words(
    file: Path, document: Document, kind: type[msgspec.Struct], message: str
) -> ConfigError:
    """msgspec's sentence as one of ours. An unforeseen one is passed on as it is."""
    place = _PLACE.fullmatch(message)
    assert place is not None, "the pattern accepts any text"
    text, path = place[1], place[2] or ""
    if missing := _MISSING.fullmatch(text):
        at = f"{path}.{missing[1]}" if path else missing[1]
        return ConfigError(file, at, "missing; it has no default")
    if expected := _EXPECTED.fullmatch(text):
        wanted = _WORDS.get(expected[1], expected[1])
        text = f"found {describe(_value_at(document, path))}; wanted {wanted}"
    elif text.startswith("Invalid enum value"):
        options = " or ".join(f'"{option}"' for option in _options(_type_at(kind, path)))
        text = f"found {describe(_value_at(document, path))}; wanted {options}"
    return ConfigError(file, path, text)


def _options(wanted: Any) -> tuple[object, ...]:
    """Of a Literal, or of `Literal[…] | None`."""
    inner = get_args(wanted)
    return get_args(inner[0]) if get_origin(inner[0]) is Literal else inner


def _value_at(document: Document, path: str) -> object:
    value: Any = document
    for key, index in _STEP.findall(path):
        value = value[int(index)] if index else value[key]
    return value


def _type_at(kind: Any, path: str) -> Any:
    for key, index in _STEP.findall(path):
        kind = get_args(kind)[0] if index else keys_of(kind)[key]
    return kind
