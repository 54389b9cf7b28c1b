"""HTTPS requests to identity providers, limited in time, size and destination."""

import contextlib
import http.client
import ipaddress
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from brewos_relay.errors import IdentityUnavailable

MAX_ANSWER_BYTES: Final = 256 * 1024
FETCH_TIMEOUT_S: Final = 5.0

_HEADERS: Final = {"Accept": "application/json", "User-Agent": "brewos-relay", "Connection": "close"}


def check_url(url: str) -> None:
    """Raise ValueError unless a URL is https, or http on this computer."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname and parts.port != 0:
        return
    if parts.scheme != "http" or not _is_here(parts.hostname):
        raise ValueError(
            f"the URL of {parts.hostname or 'the provider'} must begin with https://;"
            " http:// is accepted for this computer only, like http://127.0.0.1:8080"
        )


def fetch_json(
    url: str,
    *,
    query: dict[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    authorization: str | None = None,
    timeout_s: float = FETCH_TIMEOUT_S,
) -> tuple[int, Any]:
    """GET a URL, or POST a form to it. Returns the status and the decoded JSON, also for error statuses.

    Blocks for little longer than `timeout_s`. Follows no redirect and uses no proxy. Raises
    IdentityUnavailable without a JSON answer; the message names the host only, since the rest of the URL may
    hold secrets.
    """
    parts = urlsplit(url)
    until_s = time.monotonic() + timeout_s
    target = parts.path or "/"
    if given := "&".join(part for part in (parts.query, urlencode(query or {})) if part):
        target = f"{target}?{given}"
    headers = dict(_HEADERS)
    if authorization is not None:
        headers["Authorization"] = authorization
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    try:
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = connect(parts.hostname or "", parts.port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.connect()
            with _cut_off(connection.sock, until_s):
                body = None if form is None else urlencode(form)
                connection.request("GET" if form is None else "POST", target, body, headers=headers)
                with connection.getresponse() as response:
                    return response.status, _read(response)
    except TimeoutError:
        raise IdentityUnavailable(f"{parts.hostname} did not answer in time") from None
    except (OSError, http.client.HTTPException) as problem:
        reason = (problem.strerror if isinstance(problem, OSError) else None) or type(problem).__name__
        raise IdentityUnavailable(f"cannot fetch from {parts.hostname}: {reason}") from None
    except (ValueError, RecursionError):
        raise IdentityUnavailable(f"the answer of {parts.hostname} is not JSON") from None


@contextlib.contextmanager
def _cut_off(sock: socket.socket, at_s: float) -> Iterator[None]:
    """Shut a connection down at a deadline. Raises TimeoutError if that happened within the block.

    A timeout for each read is not enough: an answer can arrive one byte at a time.

    **Owns:** the timer thread.
    """
    was_cut = threading.Event()

    def cut() -> None:
        was_cut.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)  # the TLS layer is not safe to use in this thread

    watch = threading.Timer(max(at_s - time.monotonic(), 0.0), cut)
    watch.start()
    try:
        yield
    finally:
        watch.cancel()
        watch.join()
        if was_cut.is_set():  # the truncated answer looks complete
            raise TimeoutError


def _read(response: http.client.HTTPResponse) -> Any:
    if 300 <= response.status < 400:
        raise OSError(0, "the answer is a redirect, which is not followed")
    body = response.read(MAX_ANSWER_BYTES + 1)
    if len(body) > MAX_ANSWER_BYTES:
        raise OSError(0, f"the answer has more than {MAX_ANSWER_BYTES} bytes")
    return json.loads(body)


def _is_here(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
