# SPDX-License-Identifier: Apache-2.0
"""The declared orders as an OpenAPI 3.1 document: docs/openapi.json. No I/O.

`make openapi` writes it, a test compares them. What
OpenAPI has no word for: an answer of lines is described by the schema of one line, and the fields
`x-audit`, `x-finished-anyway` say what `orders` says of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from replicator.control.orders import ORDERS, Order
from replicator.control.types import ErrorBody, Progress

REFERENCE = "#/components/schemas/{name}"
ABOUT = (
    "HTTP/1.1 on the control socket of an agent or a receiver (curl --unix-socket): who may use the"
    " socket may order everything. A tag names the daemon that serves an order. Fields may be added"
    " to answers; a field that is not known refuses an order. docs/cli.md describes the fields."
)
NAMES = {"group": "The name of a group.", "view": "The identifier of a view."}

Json = dict[str, Any]


def document() -> Json:
    routes = [order for order in ORDERS if not order.is_plan]
    bodies = [order.request for order in routes if order.takes_body]
    queries = {order.request for order in routes if order.takes_query}
    types = [*bodies, *(order.answer for order in ORDERS), ErrorBody, Progress]
    _, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    (_, asked) = msgspec.json.schema_components(queries, ref_template=REFERENCE)
    paths: dict[str, Json] = {}
    for order in routes:
        paths.setdefault(order.path, {})[order.method.lower()] = _operation(order, asked)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Replicator's control API", "version": "1", "description": ABOUT},
        "servers": [
            {"url": "http://localhost", "description": "By the socket, whatever the host."}
        ],
        "tags": [
            {"name": "agent", "description": "At the source."},
            {"name": "receiver", "description": "At the DR site."},
        ],
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items()))},
    }


def _operation(order: Order[Any, Any], asked: dict[str, Json]) -> Json:
    """`asked`: the schemas of all queries, by the names of their types."""
    parameters = [_named(name) for name in NAMES if f"{{{name}}}" in order.path]
    if order.takes_query:
        parameters += _query(asked[order.request.__name__])
    operation: Json = {
        "operationId": order.name,
        "summary": order.about,
        "tags": list(order.roles),
        "x-audit": order.audit or None,
        "x-finished-anyway": order.is_finished_anyway,
        "parameters": parameters,
    }
    if order.takes_body:
        operation["requestBody"] = {"required": True, "content": _json(_schema(order.request))}
    operation["responses"] = {
        "200": _answered(order),
        "default": {
            "description": "It was not carried out, or failed: `error` names the exit code.",
            "content": _json(_schema(ErrorBody)),
        },
    }
    return operation


def _answered(order: Order[Any, Any]) -> Json:
    result = _schema(order.answer)
    if order.plan is not None:
        result = {"anyOf": [result, _schema(order.plan.answer)]}
    if not order.is_long:
        return {"description": "It is done.", "content": _json(result)}
    line = {
        "type": "object",
        "properties": {
            "progress": _schema(Progress),
            "result": result,
            "error": {"type": "string"},
            "message": {"type": "string"},
            "hint": {"type": "string"},
        },
    }
    return {
        "description": "Lines, empty ones to show life: `progress` as it goes; the last one has"
        " `result`, or `error` with `message` and `hint`.",
        "content": {"application/x-ndjson": {"schema": line}},
    }


def _query(schema: Json) -> Iterable[Json]:
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        kinds = [kind for kind in field.get("anyOf", [field]) if kind != {"type": "null"}]
        (kind,) = kinds
        yield {"name": name, "in": "query", "required": name in required, "schema": kind}


def _named(name: str) -> Json:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": NAMES[name],
        "schema": {"type": "string"},
    }


def _schema(kind: Any) -> Json:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=REFERENCE)
    return dict(schema)


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def text() -> str:
    return msgspec.json.format(msgspec.json.encode(document()), indent=2).decode() + "\n"
