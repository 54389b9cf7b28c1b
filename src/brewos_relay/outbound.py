"""Outgoing HTTP requests on Trio, limited in time, size and destination.

The URL of a request may come from a user. So a host is resolved once, all of its addresses must be public,
and the connection goes to exactly these addresses: a name whose address changes meanwhile leads nowhere else.
No redirect is followed, and no proxy is used.
"""

import ipaddress
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

import h11
import trio

from brewos_relay.errors import OutboundFailed

MAX_URL_CHARS: Final = 2048
"""How long the URL of a user may be."""
_MOST_ADDRESSES: Final = 4
_HEAD_BYTES: Final = 16 * 1024
"""How long the head of an answer may be. Its framing may have as much, and an eighth of the body."""
_READ_BYTES: Final = 16 * 1024
# Special networks that some versions of Python take for public.
_SPECIAL: Final = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48", "2001::/23", "3fff::/20"))
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address: TypeAlias = tuple[Any, ...]
"""The address of a socket, as `getaddrinfo` returns it."""


@dataclass(frozen=True, slots=True)
class OutboundAnswer:
    """The answer to a request. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_url(url: str) -> SplitResult:
    """Split an https URL of a user. Raises ValueError for any other one, and for one with a user name."""
    if len(url) > MAX_URL_CHARS:
        raise ValueError(f"the URL must have at most {MAX_URL_CHARS} characters")
    parts = _split(url)
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError("the URL must begin with https:// and name a host")
    return parts


def check_operator_url(url: str) -> SplitResult:
    """Split a URL of the operator: https, or http on this computer. Raises ValueError for any other one."""
    parts = _split(url)
    if parts.hostname and (
        parts.scheme == "https"
        or (parts.scheme == "http" and (parts.hostname == "localhost" or _is_loopback(parts.hostname)))
    ):
        return parts
    raise ValueError(
        f"the URL of {parts.hostname or 'the provider'} must begin with https://;"
        " http:// is accepted for this computer only, like http://127.0.0.1:8080"
    )


def _split(url: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("the URL must have printable ASCII characters only")
    parts = urlsplit(url)
    if parts.port == 0:
        raise ValueError("the URL must not have the port 0")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL must not have a user name")
    return parts


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_public(address: str) -> bool:
    """Tell whether an IP address is public, and no form of writing one that is not."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None or ip.sixtofour is not None or ip.teredo is not None:
            return False
        inner = ip.ipv4_mapped
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _SPECIAL)


class Outbound:
    """Sends HTTP requests. `tls` is the context for all of them; by default, one with the system's CAs."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        most_bytes: int,
        timeout_s: float,
        public_only: bool = True,
    ) -> OutboundAnswer:
        """Send a request and return the answer, whatever its status, unless it is a redirect.

        `public_only` is for URLs of users; those of the operator may lead to the local network, and without
        TLS to this computer. Raises OutboundFailed, whose text names the host only, since the rest of the URL
        may be a secret.
        """
        try:
            parts = check_url(url) if public_only else check_operator_url(url)
        except ValueError as problem:
            raise OutboundFailed(str(problem)) from None
        host = parts.hostname or ""
        with trio.move_on_after(timeout_s):
            try:
                stream = await self._connect(parts, public_only=public_only)
                try:
                    return await _exchange(stream, method, parts, headers or {}, body, most_bytes)
                finally:
                    await trio.aclose_forcefully(stream)
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as problem:
                raise OutboundFailed(f"cannot reach {host}: {_reason_of(problem)}") from None
            except h11.RemoteProtocolError:
                raise OutboundFailed(f"the answer of {host} is not HTTP") from None
        raise OutboundFailed(f"{host} did not answer within {timeout_s:g} s")

    async def _connect(self, parts: SplitResult, *, public_only: bool) -> trio.abc.Stream:
        """Connect to one of the addresses of a host, with TLS unless it is this computer."""
        host = parts.hostname or ""
        secure = parts.scheme == "https"
        if secure and self._tls is None:
            self._tls = await trio.to_thread.run_sync(ssl.create_default_context)
        addresses = await resolve(host, parts.port or (443 if secure else 80))
        if public_only and not all(is_public(address[0]) for _, address in addresses):
            raise OutboundFailed(f"{host} has an address that is not public")
        if not secure and not all(_is_loopback(address[0]) for _, address in addresses):
            raise OutboundFailed(f"{host} has an address that is not of this computer")
        stream = await _open_first(addresses)
        if not secure:
            return stream
        assert self._tls is not None
        tls = trio.SSLStream(stream, self._tls, server_hostname=host, https_compatible=True)
        try:
            await tls.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(tls)
            raise
        return tls


async def resolve(host: str, port: int) -> Sequence[tuple[int, Address]]:
    """Return the first addresses of a host, each with its family. Raises OSError without any."""
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found[:_MOST_ADDRESSES]]


async def _open_first(addresses: Sequence[tuple[int, Address]]) -> trio.SocketStream:
    """Connect to the first address that accepts. Raises OSError if none does."""
    problem: OSError = OSError("no address")
    for family, address in addresses:
        socket = trio.socket.socket(family, trio.socket.SOCK_STREAM)
        try:
            await socket.connect(address)
        except OSError as error:
            socket.close()
            problem = error
        except BaseException:
            socket.close()
            raise
        else:
            return trio.SocketStream(socket)
    raise problem


async def _exchange(
    stream: trio.abc.Stream,
    method: str,
    parts: SplitResult,
    headers: Mapping[str, str],
    body: bytes,
    most_bytes: int,
) -> OutboundAnswer:
    """Send a request over a connection and read the answer."""
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    every = {
        "Host": parts.netloc,
        "Connection": "close",
        "Accept-Encoding": "identity",
        "Content-Length": str(len(body)),
        "User-Agent": "brewos-relay",
        **headers,
    }
    request = h11.Request(method=method, target=target, headers=list(every.items()))
    whole = (http.send(request), http.send(h11.Data(data=body)), http.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(part or b"" for part in whole))
    head: h11.Response | None = None
    received = bytearray()
    # Interim responses and small chunks cost much more time than their bytes suggest.
    left = most_bytes + most_bytes // 8 + _HEAD_BYTES
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            part = await stream.receive_some(_READ_BYTES)
            left -= len(part)
            if left < 0:
                raise OutboundFailed(f"the answer of {parts.hostname} has more than {most_bytes} bytes")
            http.receive_data(bytes(part))
        elif isinstance(event, h11.Response):
            head = event
            if 300 <= event.status_code < 400:
                raise OutboundFailed(f"{parts.hostname} answered with a redirect, which is not followed")
        elif isinstance(event, h11.Data):
            received += event.data
            if len(received) > most_bytes:
                raise OutboundFailed(f"the answer of {parts.hostname} has more than {most_bytes} bytes")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            named = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
            return OutboundAnswer(head.status_code, named, bytes(received))
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise OutboundFailed(f"{parts.hostname} closed the connection without an answer")


def _reason_of(problem: BaseException) -> str:
    cause = problem.__cause__ if isinstance(problem, trio.BrokenResourceError) else problem
    if isinstance(cause, ssl.SSLError):
        return cause.reason or "TLS failed"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return "the connection broke"
