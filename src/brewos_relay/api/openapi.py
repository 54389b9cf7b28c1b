"""Registration of views, and GET /api/openapi.json: the OpenAPI 3.1 document of the HTTP API.

Every view under /api has a description, made by the decorator `described`. The document is generated from the
descriptions and the routes. Bodies and answers are the msgspec structs that the views decode and encode.
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
    "device_id": ("id of the device, in any case", {"type": "string", "pattern": f"^{DEVICE_ID.pattern}$"}),
    "user_id": ("id of the user", {"type": "string", "minLength": 1}),
    "share_id": ("id of the share", {"type": "string", "minLength": 1}),
    "token_id": ("id of the token", {"type": "string", "minLength": 1}),
    "shot_id": ("id of the shot", {"type": "integer", "minimum": 1}),
    "session_id": ("id of the session", {"type": "string", "minLength": 1}),
}
_REFUSALS: Final[Mapping[int, str]] = {
    400: "the request is malformed; the text says what is wrong",
    401: "the token is missing or not valid",
    403: "you may not do this, or the request comes from a page of another site",
    404: "it does not exist, or you have no access to it",
    409: "the request conflicts with the current state",
    415: "the body is not declared as application/json",
    422: "the request is well-formed but makes no sense",
    429: "too many requests; Retry-After says when to retry",
    503: "not available at the moment; Retry-After says when to retry",
}


class Problem(msgspec.Struct):
    """The body of every error answer."""

    error: str


class Done(msgspec.Struct):
    """The answer of a request that succeeded and returns nothing."""

    success: bool = True


class Document(msgspec.Struct):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The description of a view."""

    summary: str
    status: int
    answer: Any
    body: Any
    body_optional: bool
    query: type[msgspec.Struct] | None
    refusals: frozenset[int]
    needs_token: bool
    body_media: str
    answer_media: str


_JSON: Final = "application/json"


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
    body_media: str = _JSON,
    answer_media: str = _JSON,
) -> Callable[[V], V]:
    """Decorate a view with its description.

    `answer` and `body` are types that msgspec supports, with the media types `answer_media` and `body_media`.
    `query` is a struct with a field for each parameter.
    `refusals` are the error statuses beyond those that are implied: 400, 413 and 415 with a body, 400 with a
    query, 401 with a token, 403 for all methods but GET, 404 with an id in the path; 429, 431 and 503 always.
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
        body_media=body_media,
        answer_media=answer_media,
    )

    def note(view: V) -> V:
        setattr(view, _ATTRIBUTE, description)
        return view

    return note


def make_blueprint(name: str, views: Mapping[str, Callable[..., Any]]) -> Blueprint:
    """Make a blueprint of views by their routes, like "GET /api/devices" or "PUT,POST /api/me/password"."""
    blueprint = Blueprint(name, __name__)
    for route, view in views.items():
        methods, _, path = route.partition(" ")
        blueprint.add_url_rule(path, view.__name__, view, methods=methods.split(","))
    return blueprint


def openapi_blueprint() -> Blueprint:
    """Make the blueprint. The document is generated at the first request."""
    blueprint = Blueprint("openapi", __name__)
    made: list[Document] = []

    @blueprint.get("/api/openapi.json")
    @described("Read this document", answer=Document, needs_token=False)
    async def openapi() -> Response:
        if not made:
            made.append(document_of(routes_of(current_app)))
        return json_answer(made[0])

    return blueprint


@dataclass(frozen=True, slots=True)
class Route:
    """A method and a path in the notation of OpenAPI, with the parameters of the path."""

    method: str
    path: str
    parameters: tuple[str, ...]
    name: str
    description: Description | None
    """None for a view without a description."""


def pattern_of(rule: str) -> str:
    """Write the path of a route in the notation of OpenAPI: with names in braces."""
    return _PARAMETER.sub(r"{\1}", rule)


def routes_of(app: Quart) -> list[Route]:
    """List the routes of an app under /api, sorted by path and method."""
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
    """Generate the document of the routes that have a description."""
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
    """The schemas of a document, each type once."""

    def __init__(self) -> None:
        self._schemas: dict[str, Any] = {}

    def schema_of(self, kind: Any) -> dict[str, Any]:
        """Return the schema of a type. For a struct, that is a reference into `components`."""
        (schema,), parts = msgspec.json.schema_components([kind], ref_template=_COMPONENTS)
        for name, part in parts.items():
            if self._schemas.setdefault(name, part) != part:
                raise ValueError(f"two types of the HTTP API have the name {name}: rename one")
        return schema

    def fields_of(self, struct: type[msgspec.Struct]) -> tuple[dict[str, Any], list[str]]:
        """Return the schemas of the fields of a struct, and the names of the required ones."""
        _, parts = msgspec.json.schema_components([struct], ref_template=_COMPONENTS)
        schema = parts[struct.__name__]
        return schema["properties"], schema["required"]

    def components(self) -> dict[str, Any]:
        """Return the schemas of all structs, by name."""
        return dict(sorted(self._schemas.items()))


def _operation(route: Route, description: Description, types: _Types) -> dict[str, Any]:
    refusals = {429, 503} | description.refusals
    # The HTTP side answers these before the request reaches the application.
    too_large = {"431": {"description": "the request line and the headers are too large"}}
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
        too_large["413"] = {"description": "the body is too large; it was not read"}
        operation["requestBody"] = {
            "required": not description.body_optional,
            "content": {description.body_media: {"schema": types.schema_of(description.body)}},
        }
    if description.needs_token:
        refusals.add(401)
    if route.method.upper() != "GET":
        refusals.add(403)  # for pages of other sites
    problem = _json_content(types.schema_of(Problem))
    operation["responses"] = {
        str(description.status): {
            "description": HTTPStatus(description.status).phrase,
            "content": {description.answer_media: {"schema": types.schema_of(description.answer)}},
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
