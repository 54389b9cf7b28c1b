"""A TLS client of exact bytes: records can be held back, cut, and looked at."""

import socket
import ssl
from contextlib import suppress

import trio

from support.certificates import client_context


class TlsClient:
    """One end of a TLS connection over a non-blocking socket."""

    def __init__(self, sock: socket.socket, version: ssl.TLSVersion | None = None) -> None:
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client_context(version).wrap_bio(self.incoming, self.outgoing)
        self.ended = False

    async def shake_hands(self, *, skip_bytes: int = 0) -> None:
        """Do the client's part of a handshake; `skip_bytes` are to be expected before the server's answer."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send_pending()
                await self.read_socket(skip_bytes)
                skip_bytes = 0
            else:
                await self.send_pending()
                return

    def record(self, data: bytes) -> bytes:
        """Encrypt data, and give the record instead of sending it."""
        assert self.tls.write(data) == len(data)
        return self.outgoing.read()

    async def send(self, data: bytes) -> None:
        await self.send_raw(self.record(data))

    async def send_pending(self) -> None:
        await self.send_raw(self.outgoing.read())

    async def send_raw(self, data: bytes) -> None:
        while data:
            await trio.lowlevel.wait_writable(self.sock)
            data = data[self.sock.send(data) :]

    async def say_goodbye(self) -> None:
        """Send close_notify."""
        with suppress(ssl.SSLError):  # the server has not said the same yet
            self.tls.unwrap()
        await self.send_pending()

    async def read_record(self) -> bytes:
        """Read data of one record; empty bytes at close_notify. Raises EOFError at an end without it."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                await self.read_socket()
            except ssl.SSLError as error:
                # Only Python 3.11.4 and newer have SSLEOFError for it.
                if error.reason == "UNEXPECTED_EOF_WHILE_READING" or isinstance(error, ssl.SSLEOFError):
                    raise EOFError from None
                raise

    async def read(self, length: int) -> bytes:
        """Read exactly this many bytes."""
        received = b""
        while len(received) < length:
            data = await self.read_record()
            assert data, f"the end came after {len(received)} bytes of {length}"
            received += data
        return received

    async def read_socket(self, skip_bytes: int = 0) -> None:
        """Read available bytes, or wait for some."""
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            data = self.sock.recv(65536)
            if not data:
                self.ended = True
                self.incoming.write_eof()
                return
            skipped = min(skip_bytes, len(data))
            skip_bytes -= skipped
            if data[skipped:]:
                self.incoming.write(data[skipped:])
                return
