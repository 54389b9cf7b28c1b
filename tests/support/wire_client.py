"""A WebSocket client of exact bytes: frames are built by hand, and received frames are not changed."""

import socket
import ssl
import struct
from base64 import b64encode
from hashlib import sha1
from typing import Any, Final, NamedTuple

import msgspec
import trio

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

MASK: Final = b"\x37\xfa\x21\x3d"
NO_MASK: Final = b"\0\0\0\0"
"""The key that a machine uses for empty and for large frames."""

WEBSOCKET_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="

_READ_BYTES: Final = 64 * 1024
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Ended(Exception):
    """The server ended or reset the connection where a frame or response was expected."""


class Frame(NamedTuple):
    """A received frame; `first` and `second` are its first two bytes."""

    first: int
    second: int
    payload: bytes

    @property
    def opcode(self) -> int:
        return self.first & 0x0F


class Response(NamedTuple):
    """An HTTP response; `head` is without the empty line at its end."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> list[str]:
        """Return the values of all lines of this name."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = [line.partition(":") for line in lines]
        return [value.strip(" ") for found, _, value in pairs if found.lower() == name.lower()]


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bytes | None = MASK
) -> bytes:
    """Build a frame; `mask` None leaves it unmasked, `rsv` is the three reserved bits as a number."""
    masked = 0 if mask is None else 0x80
    length = len(payload)
    if length <= 125:
        size = bytes([masked | length])
    elif length <= 0xFFFF:
        size = bytes([masked | 126]) + length.to_bytes(2, "big")
    else:
        size = bytes([masked | 127]) + length.to_bytes(8, "big")
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + size + put_mask(payload, mask)


def put_mask(payload: bytes, mask: bytes | None) -> bytes:
    """Return the mask and the masked payload, as in a frame."""
    if mask is None:
        return payload
    length = len(payload)
    key = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
    return mask + (int.from_bytes(payload, "big") ^ key).to_bytes(length, "big")


def text(content: dict[str, Any] | str | bytes) -> bytes:
    """Build a text frame of a JSON object, or of a text as it is."""
    if isinstance(content, dict):
        content = msgspec.json.encode(content)
    return frame(TEXT, content.encode() if isinstance(content, str) else content)


def packed(content: dict[str, Any] | bytes) -> bytes:
    """Build a binary frame of a MessagePack map, or of bytes as they are."""
    return frame(BINARY, content if isinstance(content, bytes) else msgspec.msgpack.encode(content))


def close(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """Build a close frame."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


def accept_value(key: str = WEBSOCKET_KEY) -> str:
    """Return the required value of Sec-WebSocket-Accept (RFC 6455 §4.2.2)."""
    return b64encode(sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()


def upgrade_head(target: str, *, method: str = "GET", version: str = "1.1", **changed: str | None) -> bytes:
    """Build an opening handshake; `changed` headers have underscores for hyphens, None leaves one out."""
    headers: dict[str, str | None] = {
        "Host": "relay.example:3001",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": WEBSOCKET_KEY,
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} {target} HTTP/{version}", *lines, "", ""]).encode("latin-1")


class WireClient:
    """One TCP connection to the server under test."""

    def __init__(
        self, stream: trio.SocketStream, tls: "trio.SSLStream[trio.SocketStream] | None" = None
    ) -> None:
        self.stream = stream
        self.tls = tls
        self.connected: dict[str, Any] = {}
        """The greeting, once it was read."""
        self._received = bytearray()

    @classmethod
    async def connect(
        cls,
        address: tuple[str, int],
        *,
        receive_buffer_bytes: int | None = None,
        tls_context: ssl.SSLContext | None = None,
    ) -> "WireClient":
        """Connect, over TLS if there is a context for it. Raises OSError."""
        sock = trio.socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        try:
            if receive_buffer_bytes is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            await sock.connect(address)
            # While nothing listens, the system may choose the wanted port as that of this end.
            if sock.getsockname() == sock.getpeername():
                raise ConnectionRefusedError("the socket is connected with itself")
            stream = trio.SocketStream(sock)
            if tls_context is None:
                return cls(stream)
            tls = trio.SSLStream(stream, tls_context, https_compatible=True)
            try:
                await tls.do_handshake()
            except trio.BrokenResourceError as error:
                raise ConnectionError("the TLS handshake failed") from error
        except BaseException:
            sock.close()
            raise
        return cls(stream, tls)

    async def send(self, *data: bytes) -> None:
        """Send all of it in one go."""
        await (self.tls or self.stream).send_all(b"".join(data))

    async def aclose(self) -> None:
        """Close the connection in an orderly way."""
        await (self.tls or self.stream).aclose()

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    def abort(self) -> None:
        """Drop the connection with a reset, as a machine does that loses its power or its network."""
        if self.stream.socket.fileno() >= 0:
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.stream.socket.close()

    async def ask(self, request: bytes) -> Response:
        """Send a request and read its answer."""
        await self.send(request)
        return await self.read_response()

    async def read_response(self) -> Response:
        """Read an answer, with the body that its Content-Length promises. Raises Ended."""
        while b"\r\n\r\n" not in self._received:
            await self._receive_more()
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        self._received = bytearray(rest)
        response = Response(int(head.split(b" ")[1]), head, b"")
        length = int(response.header("content-length")[0]) if response.header("content-length") else 0
        return response._replace(body=await self._take(length))

    async def read_frame(self) -> Frame:
        """Read a frame. Raises Ended."""
        first, second = await self._take(2)
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(await self._take(2 if length == 126 else 8), "big")
        return Frame(first, second, await self._take(length))

    async def show_life(self) -> None:
        """Ping as a machine does, and read up to the answer. Raises Ended."""
        await self.send(frame(PING, mask=NO_MASK))
        while (await self.read_frame()).opcode != PONG:
            pass

    async def read_message(self) -> Frame:
        """Read up to the next frame that is no ping or pong. Raises Ended."""
        while True:
            found = await self.read_frame()
            if found.opcode not in {PING, PONG}:
                return found

    async def read_json(self) -> dict[str, Any]:
        """Read the next message, which is a text. Raises Ended."""
        found = await self.read_message()
        assert found.first == 0x80 | TEXT, found
        content = msgspec.json.decode(found.payload)
        assert isinstance(content, dict)
        return content

    async def read_until(self, message_type: str) -> dict[str, Any]:
        """Read up to the text message of this type. Raises Ended."""
        while True:
            content = await self.read_json()
            if content.get("type") == message_type:
                return content

    async def read_close(self) -> tuple[int, str]:
        """Read up to the close frame, past all other frames. Raises Ended."""
        while True:
            found = await self.read_frame()
            if found.opcode == CLOSE:
                return int.from_bytes(found.payload[:2], "big"), found.payload[2:].decode()

    async def read_to_end(self) -> bytes:
        """Read all that comes until the server ends the connection."""
        while True:
            try:
                await self._receive_more()
            except Ended:
                rest, self._received = bytes(self._received), bytearray()
                return rest

    async def _take(self, length: int) -> bytes:
        while len(self._received) < length:
            await self._receive_more()
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    async def _receive_more(self) -> None:
        try:
            data = await (self.tls or self.stream).receive_some(_READ_BYTES)
        except trio.BrokenResourceError as error:
            raise Ended("reset by the server") from error
        if not data:
            raise Ended(f"ended by the server; unread: {bytes(self._received)[:100]!r}")
        self._received += data
