"""What an HTTP connection may ask for: plain HTTP/1.x requests of bounded size, and nothing else."""

import re
from collections import Counter
from typing import Final

import h11

# A name, an IPv4 address or an IPv6 one, with or without a port; a name's labels have at most 63 characters.
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|[\w-]{1,63}(?:\.[\w-]{1,63})*\.?)?(?::\d{0,5})?",
)
_REASONS: Final = {
    408: "too_slow",
    413: "body_too_large",
    431: "head_too_large",
    501: "other_protocol",
    505: "other_protocol",
}


def reason_of(status: int) -> str:
    """Say in a word, for those who count, why a request was refused that nobody has looked into."""
    return _REASONS.get(status, "malformed")


class RequestGate(h11.Connection):
    """HTTP/1.1 as h11 reads it, but nothing gets through that is too large or asks for another protocol.

    Whatever is refused looks like a protocol error to Hypercorn, which answers it and closes the connection.
    It is counted in `refused`, by reason.
    """

    def __init__(self, *, head_bytes: int, body_bytes: int, refused: Counter[str] | None = None) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=head_bytes)
        self._head_limit_bytes = head_bytes
        self._body_limit_bytes = body_bytes
        self._body_bytes = 0
        self._refused = refused if refused is not None else Counter()

    def receive_data(self, data: bytes) -> None:
        """Take what was read; what comes behind a request that is the last one is dropped."""
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Read the next event. Raises h11.RemoteProtocolError with the status of the refusal."""
        if self.their_state is h11.MUST_CLOSE:
            return h11.NEED_DATA  # or h11 would complain about it, and the answer under way would be lost
        try:
            return self._let_through(super().next_event())
        except h11.RemoteProtocolError as problem:
            self._refused[reason_of(problem.error_status_hint)] += 1
            raise

    def _let_through(
        self, event: h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        status = None
        if isinstance(event, h11.Request):
            self._body_bytes = 0
            status = self._refusal(event)
        elif isinstance(event, h11.Data):
            self._body_bytes += len(event.data)
            status = 413 if self._body_bytes > self._body_limit_bytes else None
        if status is not None:
            # h11 does the same before it raises; it makes whatever the app still sends harmless.
            self._process_error(self.their_role)
            raise h11.RemoteProtocolError("refused", error_status_hint=status)
        return event

    def _refusal(self, request: h11.Request) -> int | None:
        """Decide about a request head; a status, or None if it may pass."""
        headers = dict(request.headers)
        head_bytes = len(request.method) + len(request.target) + len(b"  HTTP/1.1\r\n")
        head_bytes += sum(len(name) + len(value) + len(b": \r\n") for name, value in request.headers)
        if head_bytes > self._head_limit_bytes:
            return 431
        if request.http_version not in {b"1.0", b"1.1"}:
            return 505  # among them the preface of HTTP/2
        if request.method == b"CONNECT":
            return 501
        if b"upgrade" in headers or not request.target.startswith(b"/"):
            return 400
        if not _HOST.fullmatch(headers.get(b"host", b"")):
            return 400
        if b"transfer-encoding" in headers and b"content-length" in headers:
            return 400  # two opinions on where the body ends (RFC 9112 §6.1)
        if int(headers.get(b"content-length", b"0")) > self._body_limit_bytes:
            return 413
        return None
