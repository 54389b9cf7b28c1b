"""How every JSON answer is made, how a request is refused, and how times are written."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, overload

import msgspec
from quart import Response, current_app

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


@overload
def iso_utc(at_ms: int) -> str: ...
@overload
def iso_utc(at_ms: int | None) -> str | None: ...
def iso_utc(at_ms: int | None) -> str | None:
    """Write a time given in ms since the epoch as ISO 8601 in UTC, with milliseconds and a Z."""
    if at_ms is None:
        return None
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
