"""Payloads: request bodies and queries, JSON answers, and refusals."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from quart import Request, Response, current_app

from brewos_relay.texts import is_name

API_VERSION: Final = 1
"""What `/api/info` says; apps ask for 1 or more."""

_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    """A request that is not fulfilled; the app answers it with `error_answer`. People read `problem`.

    One that has a `reason`, a word of ours, is counted by it.
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
    """Make a JSON answer; `content` is whatever msgspec can encode."""
    return current_app.response_class(
        _encode(content),
        status=status,
        headers=dict(headers or {}),
        content_type="application/json",
    )


def error_answer(problem: str, *, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Make the answer to a request that was not fulfilled; apps show `problem` to people."""
    return json_answer({"error": problem}, status=status, headers=headers)


_JSON: Final = "application/json"

_NUMBER: Final = re.compile("-1|[0-9]{1,18}")

Struct = TypeVar("Struct", bound=msgspec.Struct)

ShortText: TypeAlias = Annotated[str, msgspec.Meta(max_length=320)]
"""An id, a code, a token of ours, an e-mail address or a name; the field's reader checks the rest."""
LongText: TypeAlias = Annotated[str, msgspec.Meta(max_length=16 * 1024)]
"""A token that somebody else made."""


class SecretStruct(msgspec.Struct):
    """A base for what has a secret in it: its repr shows none of its fields."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


async def body_of(request: Request, shape: type[Struct]) -> Struct:
    """Decode a request's body; more members are let pass.

    Raises Refused: 415 unless it is declared as JSON, since forms of foreign pages cannot do so without
    asking first; 400 that says where the mistake is, without repeating what was sent.
    """
    content = await request.get_data(as_text=False)
    if request.mimetype != _JSON:
        raise Refused(f"Send the body as JSON, with 'Content-Type: {_JSON}'.", status=415)
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.ValidationError as problem:
        raise Refused(f"The body cannot be taken: {problem}.", status=400) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused("The body must be a JSON object in UTF-8.", status=400) from None


def query_of(request: Request, shape: type[Struct]) -> Struct:
    """Read the parameters of a query; others are let pass. Raises Refused (400) as `body_of` does."""
    try:
        return msgspec.convert(request.args.to_dict(), type=shape, strict=False)
    except msgspec.ValidationError as problem:
        raise Refused(f"The query cannot be taken: {problem}.", status=400) from None


class PageQuery(msgspec.Struct):
    """The query of a list: at most `limit` entries, behind the `next` of the page before."""

    after: Annotated[str, msgspec.Meta(max_length=320)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 500

    def mark(self) -> tuple[int, str] | None:
        """Read `after`; None for the first page. Raises Refused (400)."""
        number, separator, id_ = self.after.partition(":")
        if not self.after:
            return None
        if not separator or not _NUMBER.fullmatch(number) or not id_.isprintable():
            raise Refused("The query cannot be taken: 'after' is no 'next' of such a list.", status=400)
        return int(number), id_


def cursor_of(number: int, id_: str) -> str:
    """Write what `PageQuery.mark` reads: where a page ends, by the number and the id of its last entry."""
    return f"{number}:{id_}"


def checked_name(text: str, *, what: str, longest_chars: int) -> str:
    """Strip a text of spaces at its ends, and give it if it can be stored and shown everywhere.

    Raises Refused (400) if it is not a name: see `texts`.
    """
    text = text.strip()
    if not is_name(text, longest_chars=longest_chars):
        raise Refused(f"{what} must have 1 to {longest_chars} printable characters.", status=400)
    return text
