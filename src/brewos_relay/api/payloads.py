"""Payloads: request bodies and queries, JSON answers, and refusals."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from quart import Request, Response, current_app
from werkzeug.routing import BaseConverter

from brewos_relay.errors import TokenRejected
from brewos_relay.texts import is_name

API_VERSION: Final = 1
"""The version of the API in `/api/info`. Apps require 1 or more."""

_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    """The refusal of a request. `problem` is shown to users.

    Refusals with a `reason` are counted by it, in the metrics.
    """

    def __init__(
        self,
        problem: str,
        *,
        status: int,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status
        self.headers = dict(headers or {})
        self.reason = reason


def json_answer(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Make a JSON answer. `content` is a value that msgspec can encode."""
    return current_app.response_class(
        _encode(content),
        status=status,
        headers=dict(headers or {}),
        content_type="application/json",
    )


def error_answer(problem: str, *, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Make an error answer. Apps show `problem` to users."""
    return json_answer({"error": problem}, status=status, headers=headers)


def as_sentence(problem: Exception) -> str:
    """Write the text of an exception as a sentence, for an error answer."""
    text = str(problem)
    return f"{text[:1].upper()}{text[1:]}."


def token_rejected(problem: TokenRejected) -> Response:
    """Make the answer to a request whose token or cookie was rejected."""
    return error_answer(as_sentence(problem), status=401, headers={"WWW-Authenticate": "Bearer"})


class SegmentConverter(BaseConverter):
    """Match a segment of a path without the character NUL, which no stored text contains."""

    regex = "[^/\0]+"


def is_api_path(path: str) -> bool:
    """Tell whether a path is one of the JSON API."""
    return path == "/api" or path.startswith("/api/")


_JSON: Final = "application/json"

_BAD_CURSOR: Final = "The query is not valid: 'after' must be the 'next' of the previous page."
_NUMBER: Final = re.compile("-1|[0-9]{1,18}")

Struct = TypeVar("Struct", bound=msgspec.Struct)

ShortText: TypeAlias = Annotated[str, msgspec.Meta(max_length=320)]
"""An id, code, token of this relay, e-mail address or name. The view checks the form."""
LongText: TypeAlias = Annotated[str, msgspec.Meta(max_length=16 * 1024)]
"""A token of another issuer."""


class SecretStruct(msgspec.Struct):
    """Base class of structs with secrets. Their repr shows no fields."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


async def body_of(request: Request, shape: type[Struct]) -> Struct:
    """Decode the body of a request, and ignore unknown members.

    Raises Refused: 415 if the body is not declared as JSON, which forms of other sites cannot do without a
    preflight request; 400 that names the wrong member, without repeating its value.
    """
    content = await request.get_data(as_text=False)
    if request.mimetype != _JSON:
        raise Refused(f"Send the body as JSON, with 'Content-Type: {_JSON}'.", status=415)
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.ValidationError as problem:
        raise Refused(f"The body is not valid: {problem}.", status=400) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("The body must be a JSON object in UTF-8.", status=400) from None


def query_of(request: Request, shape: type[Struct]) -> Struct:
    """Decode the parameters of a query, and ignore unknown ones. Raises Refused (400) like `body_of`."""
    # PostgreSQL cannot compare a text with NUL, which would look like a failure of the registry.
    if any("\0" in text for text in request.args.values()):
        raise Refused("The query is not valid: a text must not contain the character NUL.", status=400)
    try:
        return msgspec.convert(request.args.to_dict(), type=shape, strict=False)
    except msgspec.ValidationError as problem:
        raise Refused(f"The query is not valid: {problem}.", status=400) from None


class PageQuery(msgspec.Struct):
    """A page of a list: at most `limit` entries, after the `next` of the previous page."""

    after: Annotated[str, msgspec.Meta(max_length=320)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 500

    def cursor(self) -> tuple[int, str] | None:
        """Decode `after`. Return None for the first page. Raises Refused (400)."""
        number, separator, id_ = self.after.partition(":")
        if not self.after:
            return None
        if not separator or not _NUMBER.fullmatch(number) or not id_.isprintable():
            raise Refused(_BAD_CURSOR, status=400)
        return int(number), id_


def cursor_of(number: int, id_: str) -> str:
    """Encode the end of a page for `PageQuery.cursor`: the number and the id of its last entry."""
    return f"{number}:{id_}"


def checked_name(text: str, *, what: str, longest_chars: int) -> str:
    """Strip a name of outer spaces and check it. Raises Refused (400) if it cannot be stored and shown.

    `texts` says which characters a name may have.
    """
    text = text.strip()
    if not is_name(text, longest_chars=longest_chars):
        raise Refused(f"{what} must have 1 to {longest_chars} printable characters.", status=400)
    return text
