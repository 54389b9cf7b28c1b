"""The page of the HTTP API, made from the OpenAPI document that a server returns."""

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, cast

import msgspec
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.api.openapi import document_of, routes_of
from brewos_relay.auth.proxy_trust import ProxyTrust

_GROUPS: Final = {
    "/api/auth/": "Accounts and sessions",
    "/api/me": "Accounts and sessions",
    "/api/devices": "Devices, pairing and sharing",
    "/api/logs": "Logs, notifications and firmware",
    "/api/push/": "Logs, notifications and firmware",
    "/api/firmware/": "Logs, notifications and firmware",
    "/api/admin/": "Administration",
    "/api/": "Server information",
}
_SCHEMAS: Final = "#/components/schemas/"


@cache
def application() -> QuartTrio:
    """Create the HTTP application without a server, to read its routes."""
    anything = cast("Any", None)
    return create_app(
        relay=anything,
        store=anything,
        keys=anything,
        proxy_trust=ProxyTrust(),
        accounts=AccountRules(),
        web_dist_path=None,
    )


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    made: dict[str, Any] = msgspec.to_builtins(document_of(routes_of(application())))
    return made


def routes() -> str:
    """Make a section for each route, and one for each type in their bodies."""
    lines: list[str] = []
    for title in sorted(set(_GROUPS.values())):
        lines += [f"## {title}", ""]
        for path, operations in document()["paths"].items():
            if _group_of(path) == title:
                for method, operation in operations.items():
                    lines += [*_route(method, path, operation), ""]
    lines += ["## Types", ""]
    for name, schema in document()["components"]["schemas"].items():
        lines += [*_type(name, schema), ""]
    return "\n".join(lines)


def _group_of(path: str) -> str:
    return next(title for prefix, title in _GROUPS.items() if path.startswith(prefix))


def _route(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path}"
    yield ""
    yield f"{operation['summary']}. {'Needs a token.' if operation['security'] else 'Needs no token.'}"
    yield ""
    if parameters := operation.get("parameters"):
        yield "| Parameter | In | Type | Required | Meaning |"
        yield "|---|---|---|---|---|"
        for each in parameters:
            kind = _kind(each["schema"])
            yield (
                f"| `{each['name']}` | {each['in']} | {kind} | {'yes' if each['required'] else 'no'} |"
                f" {each.get('description', '')} |"
            )
        yield ""
    if body := operation.get("requestBody"):
        optional = "" if body["required"] else ", optional"
        yield f"Body: {_kind(_schema_in(body))}{_media_of(body)}{optional}."
        yield ""
    for status, answer in operation["responses"].items():
        if int(status) < 400:
            yield f"Response: {_kind(_schema_in(answer))}{_media_of(answer)} ({status})."
    refusals = sorted(status for status in operation["responses"] if int(status) >= 400)
    yield f"Refused with [{', '.join(refusals)}](#refusals)."


def refusals() -> str:
    """Make the table of error statuses."""
    meanings = {
        status: answer["description"]
        for operations in document()["paths"].values()
        for operation in operations.values()
        for status, answer in operation["responses"].items()
        if int(status) >= 400
    }
    rows = [f"| {status} | {meaning} |" for status, meaning in sorted(meanings.items())]
    return "\n".join(["| Status | Meaning |", "|---|---|", *rows])


def _schema_in(holder: dict[str, Any]) -> dict[str, Any]:
    (content,) = holder["content"].values()
    schema: dict[str, Any] = content["schema"]
    return schema


def _media_of(holder: dict[str, Any]) -> str:
    (media,) = holder["content"]
    return "" if media == "application/json" else f" as `{media}`"


def _type(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}"
    yield ""
    if description := schema.get("description"):
        yield description
        yield ""
    if "properties" in schema:
        required = schema.get("required", [])
        yield "| Field | Type | Required |"
        yield "|---|---|---|"
        for field, kind in schema["properties"].items():
            yield f"| `{field}` | {_kind(kind)} | {'yes' if field in required else 'no'} |"
    else:
        yield _kind(schema)


def _kind(schema: dict[str, Any]) -> str:
    """Describe a schema in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_SCHEMAS)
        return f"[{name}](#{name.lower()})"
    if several := schema.get("anyOf"):
        return " or ".join(_kind(each) for each in several)
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    bounds = [
        words
        for key, words in (
            ("minLength", "at least {} long"),
            ("maxLength", "at most {} long"),
            ("minimum", "from {}"),
            ("maximum", "to {}"),
        )
        if key in schema
        for words in [words.format(schema[key])]
    ]
    return ", ".join([str(kind), *bounds])
