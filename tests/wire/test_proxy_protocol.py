"""PROXY headers, byte by byte."""

import ipaddress
import struct

import pytest

from brewos_relay.wire.proxy_protocol import (
    MOST_HEADER_BYTES,
    ProxyHeader,
    ProxyProtocolError,
    parse_proxy_header,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LINE = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"


def binary(body: bytes = b"", *, command: int = 0x21, family: int = 0x11) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def addresses(source: str, target: str, *, port: int = 56324) -> bytes:
    both = ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed
    return both + struct.pack("!HH", port, 443)


def extra(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


TCP4 = addresses("192.0.2.7", "198.51.100.1")
TCP6 = addresses("2001:db8::7", "2001:db8::1")
OVER_TLS = extra(0x20, b"\x01" + bytes(4) + extra(0x21, b"TLSv1.3"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (LINE, ProxyHeader("192.0.2.7", 56324)),
        (b"PROXY TCP6 2001:DB8::7 2001:db8::1 1 65535\r\n", ProxyHeader("2001:db8::7", 1)),
        (b"PROXY UNKNOWN\r\n", ProxyHeader()),
        (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", ProxyHeader()),
        (binary(TCP4), ProxyHeader("192.0.2.7", 56324)),
        (binary(TCP6, family=0x21), ProxyHeader("2001:db8::7", 56324)),
        (binary(TCP4 + extra(0x04, b"padding")), ProxyHeader("192.0.2.7", 56324)),
        (binary(TCP4 + extra(0x01, b"h2") + OVER_TLS), ProxyHeader("192.0.2.7", 56324, secure=True)),
        (binary(TCP6 + OVER_TLS, family=0x21), ProxyHeader("2001:db8::7", 56324, secure=True)),
        (binary(TCP4 + extra(0x20, bytes(5))), ProxyHeader("192.0.2.7", 56324)),
        (binary(TCP4 + extra(0x20, b"")), ProxyHeader("192.0.2.7", 56324)),
        (binary(command=0x20, family=0x00), ProxyHeader()),
        (binary(TCP4, command=0x20), ProxyHeader()),
        (binary(bytes(216), family=0x31), ProxyHeader()),
        (binary(TCP4, family=0x12), ProxyHeader()),
    ],
)
def test_a_header_says_whose_the_connection_is_and_where_it_ends(
    header: bytes, expected: ProxyHeader
) -> None:
    assert parse_proxy_header(header) == (expected, len(header))
    assert parse_proxy_header(header + b"\x16\x03\x01\n") == (expected, len(header))
    for length in range(len(header)):
        assert parse_proxy_header(header[:length]) is None, "more has to come"


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"P\0",
        b"\r\n\r\n\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n",
        b"PROXY TCP4 192.0.2.777 198.51.100.1 1 443\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100 1 443\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 1 443\r\n",
        b"PROXY TCP6 192.0.2.7 198.51.100.1 1 443\r\n",
        b"PROXY TCP4  192.0.2.7 198.51.100.1 1 443\r\n",
        b"PROXY tcp4 192.0.2.7 198.51.100.1 1 443\r\n",
        b"PROXY UNKNOWN\0\r\n",
        b"PROXY UNKNOWN " + b"a" * 92 + b"\r\n",
        b"PROXY " + b"a" * 102,
        binary(TCP4, command=0x11),
        binary(TCP4, command=0x22),
        binary(TCP4, family=0x13),
        binary(TCP4[:-1]),
        binary(TCP6[:-1], family=0x21),
        binary(TCP4 + b"\x04\0"),
        binary(TCP4 + b"\x04\0\x02a"),
        SIGNATURE + struct.pack("!BBH", 0x21, 0x11, MOST_HEADER_BYTES - 15),
    ],
)
def test_malformed_proxy_header_is_refused(wrong: bytes) -> None:
    with pytest.raises(ProxyProtocolError):
        parse_proxy_header(wrong)


def test_the_longest_headers_are_taken() -> None:
    line = b"PROXY UNKNOWN " + b"a" * 91 + b"\r\n"
    assert len(line) == 107
    assert parse_proxy_header(line) == (ProxyHeader(), 107)
    header = binary(TCP4 + extra(0x04, bytes(MOST_HEADER_BYTES - 16 - len(TCP4) - 3)))
    assert len(header) == MOST_HEADER_BYTES
    assert parse_proxy_header(header) == (ProxyHeader("192.0.2.7", 56324), MOST_HEADER_BYTES)
