"""Connections of the soak: plain sockets on Trio that can be as rude as they like."""

import json
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
ANSWER_S = 10.0
"""How long the relay may take to answer a request."""
FORGET_S = 2.5
"""How long a connection that was cut may still be counted by the relay."""
READ_BYTES = 64 * 1024


class Unanswered(Exception):
    """The relay did not answer a request as HTTP."""


def frame(opcode: int, payload: bytes = b"", *, first: int | None = None) -> bytes:
    """Build a masked frame; `first` is its first byte, if it is to be a wrong one."""
    head = bytes([0x80 | opcode if first is None else first])
    length = len(payload)
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
    mask = os.urandom(4)
    key = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
    return head + size + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(length, "big")


def text(content: dict[str, Any]) -> bytes:
    return frame(TEXT, json.dumps(content).encode())


class Crowd:
    """The connections, as the peers know them.

    The relay must count sure connections. It may count doubtful ones, which are just beginning or ending.
    Devices are counted by id, apps by connection.
    """

    def __init__(self, address: tuple[str, int], nursery: trio.Nursery) -> None:
        self.address = address
        self.nursery = nursery
        kinds = ("device", "app", "stranger")
        self.sure: dict[str, dict[Connection, object]] = {kind: {} for kind in kinds}
        self.doubtful: dict[str, dict[Connection, object]] = {kind: {} for kind in kinds}
        self.sockets = 0
        self.made = 0
        self.statuses: dict[int, int] = {}
        self.complaints: dict[str, int] = {}

    def bounds(self) -> dict[str, tuple[set[object], set[object]]]:
        """Return the counts that the relay must have and may have, for devices and for apps."""
        found = {}
        for kind, sure in self.sure.items():
            certain = set(sure.values())
            found[kind] = (certain, certain | set(self.doubtful[kind].values()))
        return found

    def complain(self, what: str) -> None:
        """Record a fault of the relay."""
        self.complaints[what] = self.complaints.get(what, 0) + 1


class Connection:
    """One connection to the relay; `async with` it, so that it is closed."""

    def __init__(self, crowd: Crowd, kind: str, device_id: str = "") -> None:
        self._crowd = crowd
        self._kind = kind
        self._key: object = device_id if kind == "device" else self
        self._received = bytearray()
        self._stream: trio.SocketStream | None = None
        self._sending = trio.Lock()
        self.greeted = trio.Event()
        self.close_code: int | None = None

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()

    @property
    def stream(self) -> trio.SocketStream:
        assert self._stream is not None
        return self._stream

    async def connect(self, *, receive_buffer_bytes: int | None = None) -> None:
        """Open a TCP connection."""
        sock = trio.socket.socket(socket.AF_INET)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            await sock.connect(self._crowd.address)
        except BaseException:
            sock.close()
            raise
        self._stream = trio.SocketStream(sock)
        self._crowd.sockets += 1
        self._crowd.made += 1

    async def ask(self, request: str) -> tuple[int, bytes]:
        """Send a request head, its lines joined by newlines; return status and body. Raises Unanswered."""
        try:
            with trio.fail_after(ANSWER_S):
                await self.stream.send_all(request.replace("\n", "\r\n").encode() + b"\r\n\r\n")
                while b"\r\n\r\n" not in self._received:
                    await self._read_more()
                head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
                self._received = bytearray(rest)
                status = int(head.split(b" ")[1])
                if status != 101:
                    await self.wait_ended()
        except (trio.BrokenResourceError, trio.TooSlowError, ValueError, IndexError) as problem:
            raise Unanswered(type(problem).__name__) from problem
        self._crowd.statuses[status] = self._crowd.statuses.get(status, 0) + 1
        return status, bytes(self._received)

    async def upgrade(self, target: str, *, receive_buffer_bytes: int | None = None) -> int:
        """Ask for a WebSocket; return the status of the answer. Raises Unanswered or OSError."""
        self.doubt()
        await self.connect(receive_buffer_bytes=receive_buffer_bytes)
        status, _ = await self.ask(
            f"GET {target} HTTP/1.1\nHost: soak\nConnection: Upgrade\nUpgrade: websocket\n"
            "Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        )
        return status

    def trust(self) -> None:
        """Be sure that the relay counts this connection from here on."""
        if self._crowd.doubtful[self._kind].pop(self, None) is not None:
            self._crowd.sure[self._kind][self] = self._key

    def doubt(self) -> None:
        """Be sure no longer."""
        self._crowd.sure[self._kind].pop(self, None)
        self._crowd.doubtful[self._kind][self] = self._key

    async def send(self, data: bytes) -> bool:
        """Send all of it; False if the relay has ended the connection."""
        try:
            async with self._sending:
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def listen(
        self, take: Callable[[int, bytes], None] | None = None, *, answer_pings: bool = True
    ) -> None:
        """Answer pings and a close frame, and give every message to `take`, until the relay has ended it."""
        while True:
            for opcode, payload in self._frames():
                self.greeted.set()
                if opcode == PING and answer_pings:
                    await self.send(frame(PONG, payload))
                elif opcode == CLOSE:
                    self.doubt()
                    self.close_code = int.from_bytes(payload[:2], "big")
                    await self.send(frame(CLOSE, payload[:2]))
                elif take is not None:
                    take(opcode, payload)
            try:
                await self._read_more()
            except trio.BrokenResourceError:
                self.doubt()
                return

    async def leave(self, *, within_s: float) -> None:
        """Close properly and wait for the relay's end of it, which something else has to listen to."""
        self.doubt()
        await self.send(frame(CLOSE, (1000).to_bytes(2, "big")))
        await trio.sleep(within_s)

    def cut(self) -> None:
        """Drop the connection with a reset."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._crowd.sockets -= 1
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.socket.close()
        self.doubt()
        self._crowd.nursery.start_soon(self._forget)

    async def _forget(self) -> None:
        await trio.sleep(FORGET_S)
        self._crowd.doubtful[self._kind].pop(self, None)

    def _frames(self) -> list[tuple[int, bytes]]:
        """Take the complete frames out of the received bytes."""
        data, start, found = self._received, 0, []
        while len(data) - start >= 2:
            length, begin = data[start + 1] & 0x7F, start + 2
            if length == 126:
                length, begin = int.from_bytes(data[begin : begin + 2], "big"), begin + 2
            elif length == 127:
                length, begin = int.from_bytes(data[begin : begin + 8], "big"), begin + 8
            if len(data) < begin + length:
                break
            found.append((data[start] & 0x0F, bytes(data[begin : begin + length])))
            start = begin + length
        del data[:start]
        return found

    async def _read_more(self) -> None:
        """Read once. Raises BrokenResourceError when there is no more."""
        try:
            data = await self.stream.receive_some(READ_BYTES)
        except trio.ClosedResourceError as problem:
            raise trio.BrokenResourceError from problem
        if not data:
            raise trio.BrokenResourceError
        self._received += data

    async def wait_ended(self) -> None:
        """Read without answering until the relay has ended the connection."""
        with suppress(trio.BrokenResourceError):
            while True:
                await self._read_more()
