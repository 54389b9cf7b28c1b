"""Requests to identity providers, by the client in `outbound`. They block: call them in a worker thread."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import trio

from brewos_relay.errors import IdentityUnavailable, OutboundFailed
from brewos_relay.outbound import Outbound

MAX_ANSWER_BYTES: Final = 256 * 1024
FETCH_TIMEOUT_S: Final = 5.0


def fetch_json(
    url: str,
    *,
    query: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    authorization: str | None = None,
    timeout_s: float = FETCH_TIMEOUT_S,
) -> tuple[int, Any]:
    """GET a URL, or POST a form to it. Returns the status and the decoded JSON, also for error statuses.

    Blocks for little longer than `timeout_s`, even if the resolver hangs: it runs an event loop of its own in
    this thread. Raises IdentityUnavailable without a JSON answer; the message names the host only, since the
    rest of the URL may hold secrets.
    """
    parts = urlsplit(url)
    if query:
        url += f"{'&' if parts.query else '?'}{urlencode(query)}"
    headers = {"Accept": "application/json"}
    if authorization is not None:
        headers["Authorization"] = authorization
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    send = partial(
        Outbound().send,
        "GET" if form is None else "POST",
        url,
        headers=headers,
        body=b"" if form is None else urlencode(form).encode(),
        most_bytes=MAX_ANSWER_BYTES,
        timeout_s=timeout_s,
        public_only=False,
    )
    try:
        answer = trio.run(send)
        return answer.status, json.loads(answer.body)
    except OutboundFailed as problem:
        raise IdentityUnavailable(str(problem)) from None
    except (ValueError, RecursionError):
        raise IdentityUnavailable(f"the answer of {parts.hostname} is not JSON") from None
