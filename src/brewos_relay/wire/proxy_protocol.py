"""The PROXY protocol: the header with which a load balancer tells the address of the client. No I/O.

Version 1 is a line of text, version 2 is binary.
"""

import re
import struct
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

MOST_HEADER_BYTES: Final = 4096
"""The largest header of version 2, including extensions that are ignored; version 1: 107."""

_V1_START: Final = b"PROXY "
_V1_MOST_BYTES: Final = 107
_V1_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?"
    rb"|TCP(?P<family>[46]) (?P<source>[0-9A-Fa-f:.]+) (?P<target>[0-9A-Fa-f:.]+)"
    rb" (?P<port>[0-9]{1,5}) [0-9]{1,5})\r\n"
)
_V2_START: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_HEAD: Final = struct.Struct("!12sBBH")
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
_V2_TCP4, _V2_TCP6 = 0x11, 0x21
_V2_FAMILIES: Final = frozenset({0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32})
_TLV_HEAD: Final = struct.Struct("!BH")
_TLV_SSL: Final = 0x20
_CLIENT_USED_SSL: Final = 0x01


class ProxyProtocolError(ValueError):
    """The connection does not begin with a valid PROXY header."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """The address of the client: None if the load balancer connects for itself, or does not know it.

    `secure` is True if the load balancer says that the client uses TLS.
    """

    address: str | None = None
    port: int = 0
    secure: bool = False


def parse_proxy_header(data: bytes) -> tuple[ProxyHeader, int] | None:
    """Parse a header; return it and its length, or None if more bytes are needed.

    Raises ProxyProtocolError at the first byte that cannot belong to a header.
    """
    if data[: len(_V1_START)] == _V1_START[: len(data)]:
        return _parse_line(data)
    if data[: len(_V2_START)] == _V2_START[: len(data)]:
        return _parse_binary(data)
    raise ProxyProtocolError("the connection does not begin with a PROXY header")


def _parse_line(data: bytes) -> tuple[ProxyHeader, int] | None:
    end = data.find(b"\n") + 1
    if max(end, len(data) if not end else 0) > _V1_MOST_BYTES:
        raise ProxyProtocolError("the PROXY header is too long")
    if not end:
        return None
    line = _V1_LINE.fullmatch(data[:end])
    if line is None:
        raise ProxyProtocolError("the PROXY header is malformed")
    if line["family"] is None:
        return ProxyHeader(), end
    address = IPv4Address if line["family"] == b"4" else IPv6Address
    try:
        source = address(line["source"].decode())
        address(line["target"].decode())
    except AddressValueError:
        raise ProxyProtocolError("an address in the PROXY header is invalid") from None
    return ProxyHeader(str(source), _port(int(line["port"]))), end


def _port(number: int) -> int:
    if number > 0xFFFF:
        raise ProxyProtocolError("a port in the PROXY header is larger than 65535")
    return number


def _parse_binary(data: bytes) -> tuple[ProxyHeader, int] | None:
    if len(data) < _V2_HEAD.size:
        return None
    _, command, family, length = _V2_HEAD.unpack_from(data)
    if command not in {_V2_LOCAL, _V2_PROXY} or family not in _V2_FAMILIES:
        raise ProxyProtocolError("the PROXY header has an unknown command or address family")
    end = _V2_HEAD.size + length
    if end > MOST_HEADER_BYTES:
        raise ProxyProtocolError("the PROXY header is too long")
    if len(data) < end:
        return None
    body = data[_V2_HEAD.size : end]
    if command == _V2_LOCAL or family not in {_V2_TCP4, _V2_TCP6}:
        return ProxyHeader(), end
    width = 4 if family == _V2_TCP4 else 16
    if len(body) < 2 * width + 4:
        raise ProxyProtocolError("the PROXY header is shorter than its addresses")
    source = IPv4Address(body[:4]) if family == _V2_TCP4 else IPv6Address(body[:16])
    port = int.from_bytes(body[2 * width : 2 * width + 2], "big")
    return ProxyHeader(str(source), port, _client_uses_tls(body[2 * width + 4 :])), end


def _client_uses_tls(extras: bytes) -> bool:
    """Read from the extensions whether the client uses TLS with the load balancer."""
    while extras:
        if len(extras) < _TLV_HEAD.size:
            raise ProxyProtocolError("the PROXY header is cut off")
        kind, length = _TLV_HEAD.unpack_from(extras)
        value, extras = extras[_TLV_HEAD.size :][:length], extras[_TLV_HEAD.size + length :]
        if len(value) < length:
            raise ProxyProtocolError("the PROXY header is cut off")
        if kind == _TLV_SSL:
            return bool(value[:1]) and bool(value[0] & _CLIENT_USED_SSL)
    return False
