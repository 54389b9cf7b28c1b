"""Valid inputs, which fuzzing mutates."""

import random
import ssl
from contextlib import suppress
from typing import Any, Final

import msgspec

from support.firmware_wire import device_frame, upgrade_request
from support.wire_client import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close,
    frame,
    packed,
    text,
    upgrade_head,
)

MACHINE: Final = "BRW-00000001"
KEY: Final = "k3y_Of-the_Machine" + "0" * 25
"""The key of `MACHINE`, as `support.process` registers it."""

STATUS: Final[dict[str, Any]] = {
    "type": "status",
    "seq": 1,
    "machine": {"state": "idle", "mode": "standby", "isHeating": False},
    "temps": {"brew": {"current": 93.2, "setpoint": 93.0}, "group": 88.5},
    "pressure": 9.02,
    "power": {"current": 1340, "voltage": 230},
    "esp32": {"version": "0.8.62", "uptime": 86_400_000},
}
CONTENTS: Final[tuple[dict[str, Any], ...]] = (
    STATUS,
    {"type": "status_delta", "seq": 2, "temps": {"brew": {"current": 94.0}}},
    {"type": "status_delta", "seq": 3, "pressure": 0.5, "machine": {}, "power": None},
    {"type": "status_delta", "seq": 2**40, "temps": [1, 2.5, "x"]},
    {"type": "keepalive", "seq": 4, "uptime": 1234567},
    {"type": "device_info", "deviceName": "Küche ☕", "schedule": {"schedules": [{"id": 1}]}},
    {"type": "log", "level": "error", "message": "über\nall", "source": "pico", "timestamp": 17},
    {"type": "power_meter_status", "reading": None, "connected": True},
    {"type": "command", "cmd": "set_temp", "boiler": "brew", "temp": 93.5, "requestId": "a1"},
    {"type": "command", "cmd": "mode", "mode": "on", "notAfter": 1_800_000_000_000, "timestamp": 5},
    {"type": "ping", "timestamp": 1_800_000_000_000},
    {"type": "request_full_status"},
    {"type": "get_metrics"},
    {"type": "refresh_auth", "token": "a.b.c"},
)

JSON: Final = tuple(msgspec.json.encode(content) for content in CONTENTS)
COMMANDS: Final = (
    *JSON,
    rb'{"type":"command","cmd":"tare","x":"\u0000\ud83d\ude00\\u0000"}',
    rb'{"type":"command","\u0063md":"set_mode","mode":"on","name":"a\/b"}',
    b'{"type":"command","cmd":"set_temp","cmd":"restart","temp":93.5}',
    b'{"type":"x","a":[[[[[[[[[1e300]]]]]]]]],"b":{"c":{"d":1},"e":{"d":2}}}',
)
PACKED: Final = tuple(msgspec.msgpack.encode(content) for content in CONTENTS)

FRAMES: Final = (
    *[text(payload) for payload in JSON],
    *[packed(payload) for payload in PACKED],
    device_frame(BINARY, PACKED[0], random.Random(1)),
    frame(PING),
    frame(PING, b"x" * 125),
    frame(PONG, b"hello"),
    close(),
    close(None),
    close(1001, "adiós".encode()),
    frame(TEXT, b"a" * 126),
    frame(BINARY, b"\x80" + b"b" * 65_536),
    frame(TEXT, "grüß".encode()[:3], fin=False)
    + frame(PING, b"between")
    + frame(CONTINUATION, "grüß".encode()[3:]),
    frame(TEXT, b'{"type":', fin=False)
    + frame(CONTINUATION, b'"log"', fin=False)
    + frame(CONTINUATION, b"}"),
)

DEVICE_TARGET: Final = f"/ws/device?id={MACHINE}&key={KEY}"
HEADS: Final = (
    upgrade_request(MACHINE, KEY, port=443, websocket_key="dGhlIHNhbXBsZSBub25jZQ=="),
    upgrade_head(DEVICE_TARGET),
    upgrade_head(f"/ws/client?token=a.b.c&device={MACHINE}&x=%C3%BC&x=+&y", Origin="https://app.example"),
    upgrade_head("/ws/device?id=&key=", Sec_WebSocket_Protocol="arduino, other"),
    upgrade_head("/", Connection="keep-alive, Upgrade", Sec_WebSocket_Extensions="permessage-deflate"),
    b"GET /api/health HTTP/1.1\r\nHost: [::1]:3001\r\nConnection: close\r\n\r\n",
    b"POST /api/auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n{}",
    b"POST /api/auth/login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nX-Forwarded-For: 1.2.3.4, ::1\r\n\r\n",
)

_V2: Final = b"\r\n\r\n\0\r\nQUIT\n"
PROXY_HEADERS: Final = (
    b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\nGET / HTTP/1.1\r\n",
    b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
    b"PROXY UNKNOWN ffff::1 whatever\r\n",
    _V2 + b"\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbbGET",
    _V2 + b"\x21\x21\x00\x24" + bytes(range(36)),
    _V2 + b"\x20\x00\x00\x00",
    _V2
    + b"\x21\x11\x00\x17\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb"
    + b"\x20\x00\x05\x01\0\0\0\0"
    + b"\x04\x00\x00",
)


def _client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a.example")
    with suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


TLS_BEGINNINGS: Final = (
    _client_hello(),
    b"\x16\x03\x01\x40\x00" + bytes(0x4000),
    b"\x15\x03\x03\x00\x02\x01\x00",
    b"\x80\x2e\x01\x00\x02",
    b"GET / HTTP/1.1\r\n\r\n",
)
