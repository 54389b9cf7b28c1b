"""RequestGate: accepts HTTP/1.x requests of bounded size and normalizes them."""

import re
from collections import Counter
from typing import Final

import h11

from brewos_relay.wire.handshake import Refusal, names_websocket, skip_empty_line, split_target

# A name, an IPv4 or an IPv6 address, with an optional port. Labels of names have at most 63 characters.
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|[\w-]{1,63}(?:\.[\w-]{1,63})*\.?)?(?::\d{0,5})?",
)
_OF_UPGRADES: Final = frozenset({b"upgrade", b"http2-settings"})
_REASONS: Final = {
    408: "too_slow",
    413: "body_too_large",
    431: "head_too_large",
    501: "other_protocol",
    505: "other_protocol",
}


def reason_of(status: int) -> str:
    """Return the reason code for a status, for refusals without a reason of their own."""
    return _REASONS.get(status, "malformed")


class WebSocketWanted(Exception):
    """Raised for a WebSocket request, once all requests before it are answered.

    `head` is the request head as received, without the empty line at its end. `rest` is the data after it.
    """

    def __init__(self, head: bytes, rest: bytes) -> None:
        super().__init__("the request is for a WebSocket")
        self.head = head
        self.rest = rest


class RequestGate(h11.Connection):
    """An h11 connection that refuses requests for a WebSocket and oversized ones, and normalizes the others.

    A refused request looks like a protocol error to Hypercorn, which responds and closes the connection;
    `refused` counts it by reason. In accepted requests, the target is a path (or `*`), the Host header names
    the requested host, and upgrades are removed. A request with an ignored upgrade is the last one of its
    connection, so that a proxy that mistakes the connection for a tunnel can send nothing more.
    """

    def __init__(
        self,
        *,
        head_bytes: int,
        body_bytes: int,
        refused: Counter[str] | None = None,
        gives_back: bool = False,
    ) -> None:
        """Set the size limits. With `gives_back`, a WebSocket request raises WebSocketWanted."""
        super().__init__(h11.SERVER, max_incomplete_event_size=head_bytes)
        self._head_limit_bytes = head_bytes
        self._body_limit_bytes = body_bytes
        self._body_bytes = 0
        self._refused = refused if refused is not None else Counter()
        self._gives_back = gives_back
        self._at_start = True

    def receive_data(self, data: bytes) -> None:
        """Receive data from the peer. Data after the last request of a connection is dropped."""
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return the next event. Raises h11.RemoteProtocolError with the status of the refusal.

        Raises WebSocketWanted, after which the gate must not be used.
        """
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA  # otherwise, h11 raises, and the response in progress is lost
        if self._at_start and self.their_state is h11.IDLE and self._skip_empty_line():
            return h11.NEED_DATA
        try:
            return self._filter(super().next_event())
        except h11.RemoteProtocolError as problem:
            self._refused[reason_of(problem.error_status_hint)] += 1
            raise

    def _filter(
        self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            if isinstance(event, h11.Request):
                self._body_bytes, self._at_start = 0, True
                return self._normalize(event)
            if isinstance(event, h11.Data):
                self._body_bytes += len(event.data)
                if self._body_bytes > self._body_limit_bytes:
                    raise Refusal(413, "the body is too large")
        except Refusal as refusal:
            # As h11 does before it raises: it makes everything that the app still sends harmless.
            self._process_error(self.their_role)
            raise h11.RemoteProtocolError("refused", error_status_hint=refusal.status) from None
        return event

    def _skip_empty_line(self) -> bool:
        """Drop an empty line before a request. Return True if more data is needed to recognize it."""
        waiting = self.trailing_data[0]
        if waiting in (b"", b"\r"):
            return waiting == b"\r"
        self._at_start = False
        if line_bytes := len(waiting) - len(skip_empty_line(waiting)):
            self._receive_buffer.maybe_extract_at_most(line_bytes)
        return len(waiting) == line_bytes

    def _normalize(self, request: h11.Request) -> h11.Request:
        """Return the normalized request for the app. Raises Refusal."""
        if (status := self._refusal(request)) is not None:
            raise Refusal(status, "refused")
        target, authority = split_target(request.method.decode(), request.target.decode())
        headers: list[tuple[bytes, bytes]] = list(request.headers)
        if authority is not None:
            headers = [(b"host", authority.encode()), *(each for each in headers if each[0] != b"host")]
        if not _HOST.fullmatch(dict(headers).get(b"host", b"")):
            raise Refusal(400, "the request has no valid Host header")
        upgrade = b",".join(value for name, value in headers if name == b"upgrade")
        if request.http_version == b"1.1" and names_websocket(upgrade.decode("latin-1")):
            if self._gives_back:
                raise WebSocketWanted(_encode_head(request), self.trailing_data[0])
            raise Refusal(400, "WebSockets are not available here")
        if any(name == b"upgrade" for name, _ in headers):
            headers = [each for each in headers if each[0] not in _OF_UPGRADES]
            self._cstate.pending_switch_proposals.clear()
            self._cstate.process_keep_alive_disabled()
        elif authority is None:
            return request
        return h11.Request(
            method=request.method, target=target, headers=headers, http_version=request.http_version
        )

    def _refusal(self, request: h11.Request) -> int | None:
        """Return the status with which to refuse a request head, or None if it is acceptable."""
        headers = dict(request.headers)
        head_bytes = len(request.method) + len(request.target) + len(b"  HTTP/1.1\r\n")
        head_bytes += sum(len(name) + len(value) + len(b": \r\n") for name, value in request.headers)
        if head_bytes > self._head_limit_bytes:
            return 431
        if request.http_version not in {b"1.0", b"1.1"}:
            return 505  # including the preface of HTTP/2
        if request.method == b"CONNECT":
            return 501
        if b"transfer-encoding" in headers and b"content-length" in headers:
            return 400  # two contradictory body lengths (RFC 9112 §6.1)
        if int(headers.get(b"content-length", b"0")) > self._body_limit_bytes:
            return 413
        return None


def _encode_head(request: h11.Request) -> bytes:
    """Encode a request head as received, except spaces around header values."""
    line = b"%s %s HTTP/%s" % (request.method, request.target, request.http_version)
    headers = (b"%s: %s" % each for each in request.headers.raw_items())
    return b"\r\n".join([line, *headers])
