"""GET /api/openapi.json: what the HTTP API takes and answers, as OpenAPI 3.1.

Every view under /api says what it does with `described`, next to its route; the document is made of that and
of the routes themselves. Bodies and answers are msgspec structs, which are what is decoded and encoded too.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec
from quart import Blueprint, Quart, Response, current_app

from brewos_relay.api.payloads import API_VERSION, json_answer
from brewos_relay.vocabulary import DEVICE_ID

V = TypeVar("V", bound=Callable[..., Any])

_PARAMETER: Final = re.compile("<(?:[a-z]+:)?([a-z_]+)>")
_ATTRIBUTE: Final = "described"
_COMPONENTS: Final = "#/components/schemas/{name}"
_NOT_LISTED: Final = frozenset({"HEAD", "OPTIONS"})

_PATH_PARAMETERS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "device_id": ("the device, in any case", {"type": "string", "pattern": f"^{DEVICE_ID.pattern}$"}),
    "user_id": ("a user, as listed", {"type": "string", "minLength": 1}),
    "share_id": ("a share, as listed", {"type": "string", "minLength": 1}),
    "token_id": ("a token, as listed", {"type": "string", "minLength": 1}),
    "session_id": ("a session, as listed", {"type": "string", "minLength": 1}),
}
_REFUSALS: Final[Mapping[int, str]] = {
    400: "the request cannot be read; the text says what is wrong with it",
    401: "a token is missing or no good",
    403: "whoever asks may not do this, or a page of another site asks",
    404: "there is no such thing, or it is not theirs who ask",
    409: "not as things stand now",
    415: "the body is not declared as application/json",
    422: "the request can be read and makes no sense",
    429: "too many requests; Retry-After says when to come back",
    503: "not at the moment; Retry-After says when to come back",
}


class Problem(msgspec.Struct):
    """What every answer is that is not what was asked for."""

    error: str


class Done(msgspec.Struct):
    """The answer to what was done and has nothing to show."""

    success: bool = True


class Document(msgspec.Struct):
    """An OpenAPI document, as far as it is said here what that is."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a view does, takes and answers."""

    summary: str
    status: int
    answer: Any
    body: Any
    body_optional: bool
    query: type[msgspec.Struct] | None
    refusals: frozenset[int]
    needs_token: bool


def described(
    summary: str,
    *,
    answer: Any,
    status: int = 200,
    body: Any = None,
    body_optional: bool = False,
    query: type[msgspec.Struct] | None = None,
    refusals: Iterable[int] = (),
    needs_token: bool = True,
) -> Callable[[V], V]:
    """Say what the view below does; stands directly above its function, under the route.

    `answer` and `body` are types that msgspec knows; `query` is a struct with a field for each parameter of
    the query. `refusals` are statuses beyond those that follow from the rest: 400, 413 and 415 with a body,
    400 with a query, 401 with a token, 403 for all methods but GET, 404 with an id in the path, 429, 431 and
    503 always.
    """
    description = Description(
        summary=summary,
        status=status,
        answer=answer,
        body=body,
        body_optional=body_optional,
        query=query,
        refusals=frozenset(refusals),
        needs_token=needs_token,
    )

    def note(view: V) -> V:
        setattr(view, _ATTRIBUTE, description)
        return view

    return note


def make_blueprint(name: str, views: Mapping[str, Callable[..., Any]]) -> Blueprint:
    """Make a blueprint of views, each by its route: "GET /api/devices", or "PUT,POST /api/me/password"."""
    blueprint = Blueprint(name, __name__)
    for route, view in views.items():
        methods, _, path = route.partition(" ")
        blueprint.add_url_rule(path, view.__name__, view, methods=methods.split(","))
    return blueprint


def openapi_blueprint() -> Blueprint:
    """Make the blueprint. The document is made when it is first asked for."""
    blueprint = Blueprint("openapi", __name__)
    made: list[Document] = []

    @blueprint.get("/api/openapi.json")
    @described("This document", answer=Document, needs_token=False)
    async def openapi() -> Response:
        if not made:
            made.append(document_of(routes_of(current_app)))
        return json_answer(made[0])

    return blueprint


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path as OpenAPI writes it, with the names in the path."""

    method: str
    path: str
    parameters: tuple[str, ...]
    name: str
    description: Description | None
    """None for a view that does not say what it does."""


def pattern_of(rule: str) -> str:
    """Write the path of a route as everybody does who writes of it: with names in braces."""
    return _PARAMETER.sub(r"{\1}", rule)


def routes_of(app: Quart) -> list[Route]:
    """List every route of an app under /api, in the order of paths and methods."""
    routes = []
    for rule in app.url_map.iter_rules():
        if not rule.rule.startswith("/api/"):
            continue
        view = app.view_functions[rule.endpoint]
        name = rule.endpoint.rpartition(".")[2]
        methods = sorted((rule.methods or set()) - _NOT_LISTED)
        routes += [
            Route(
                method.lower(),
                pattern_of(rule.rule),
                tuple(_PARAMETER.findall(rule.rule)),
                name if len(methods) == 1 else f"{name}_{method.lower()}",
                getattr(view, _ATTRIBUTE, None),
            )
            for method in methods
        ]
    return sorted(routes, key=lambda route: (route.path, route.method))


def document_of(routes: Iterable[Route]) -> Document:
    """Make the document of routes that all have a description."""
    listed = [(route, route.description) for route in routes if route.description is not None]
    types = _Types()
    paths: dict[str, dict[str, Any]] = {}
    for route, description in listed:
        paths.setdefault(route.path, {})[route.method] = _operation(route, description, types)
    return Document(
        openapi="3.1.0",
        info={"title": "brewos-relay", "version": str(API_VERSION)},
        paths=paths,
        components={
            "schemas": types.components(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    )


class _Types:
    """The types that a document speaks of, once each."""

    def __init__(self) -> None:
        self._schemas: dict[str, Any] = {}

    def schema_of(self, kind: Any) -> dict[str, Any]:
        """Give the schema of a type; that of a struct is a reference to what `components` gives."""
        (schema,), parts = msgspec.json.schema_components([kind], ref_template=_COMPONENTS)
        for name, part in parts.items():
            if self._schemas.setdefault(name, part) != part:
                raise ValueError(f"two types of the HTTP API have the name {name}: rename one")
        return schema

    def fields_of(self, struct: type[msgspec.Struct]) -> tuple[dict[str, Any], list[str]]:
        """Give the schema of each field of a struct, by its name, and those that must be there."""
        _, parts = msgspec.json.schema_components([struct], ref_template=_COMPONENTS)
        schema = parts[struct.__name__]
        return schema["properties"], schema["required"]

    def components(self) -> dict[str, Any]:
        """Give the schemas of the structs, by name."""
        return dict(sorted(self._schemas.items()))


def _operation(route: Route, description: Description, types: _Types) -> dict[str, Any]:
    refusals = {429, 503} | description.refusals
    # These are answered by whoever reads requests, before anybody knows what is asked for.
    too_large = {"431": {"description": "the request line and the headers are too large together"}}
    operation: dict[str, Any] = {
        "summary": description.summary,
        "operationId": route.name,
        "security": [{"token": []}] if description.needs_token else [],
    }
    parameters = [_path_parameter(name) for name in route.parameters]
    if parameters:
        refusals.add(404)
    if description.query is not None:
        refusals.add(400)
        fields, required = types.fields_of(description.query)
        parameters += [
            {"name": name, "in": "query", "required": name in required, "schema": schema}
            for name, schema in fields.items()
        ]
    if parameters:
        operation["parameters"] = parameters
    if description.body is not None:
        refusals |= {400, 415}
        too_large["413"] = {"description": "the body is too large; nothing of it was looked at"}
        operation["requestBody"] = {
            "required": not description.body_optional,
            "content": _json_content(types.schema_of(description.body)),
        }
    if description.needs_token:
        refusals.add(401)
    if route.method.upper() != "GET":
        refusals.add(403)  # to pages of other sites
    problem = _json_content(types.schema_of(Problem))
    operation["responses"] = {
        str(description.status): {
            "description": HTTPStatus(description.status).phrase,
            "content": _json_content(types.schema_of(description.answer)),
        },
        **{
            str(status): {"description": _REFUSALS[status], "content": problem} for status in sorted(refusals)
        },
        **dict(sorted(too_large.items())),
    }
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    meaning, schema = _PATH_PARAMETERS[name]
    return {"name": name, "in": "path", "required": True, "description": meaning, "schema": schema}


def _json_content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
