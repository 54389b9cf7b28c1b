"""TLS in a transport: OpenSSL works in memory, between the transport and its socket.

A read takes all available records from the socket. OpenSSL itself would read twice for each record: its
header, then its content. No data waits in OpenSSL while the socket has none, so a poller that watches the
socket misses nothing. One exception: data that came with the handshake waits for the first read.
"""

import contextlib
import socket
import ssl
from typing import Final

import trio

from brewos_relay.errors import PeerGone
from brewos_relay.wire.transport import READ_BYTES, Transport, WriteBatch

_HANDSHAKE_RECORD: Final = b"\x16"
_MOST_BYTES_ENCRYPTED: Final = 64 * 1024
"""How much of a write is encrypted at a time."""
_MOST_BYTES_AHEAD: Final = 4096
"""Larger writes are encrypted when they are sent, so that those of a pass take little memory."""
_BYTES_CLEARED: Final = 256


def begins_like_tls(data: bytes) -> bool:
    """Whether these first bytes of a connection can be those of a TLS handshake (RFC 8446 §5.1)."""
    return data[:1] == _HANDSHAKE_RECORD


class _Buffers:
    """The buffers between OpenSSL and the sockets, shared by all connections of a Trio run.

    They keep their memory, about as much as the largest read. Each use ends without waiting and leaves them
    empty. After a failure they may hold bytes of the failed connection; the next use clears them first.
    """

    __slots__ = ("incoming", "leftovers", "outgoing")

    def __init__(self) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.leftovers = False
        """Whether the last use has not ended, or has failed."""

    def begin(self) -> None:
        """Begin a use, with empty buffers. Clearing them takes little memory: there may be no more."""
        if self.leftovers:
            for buffer in (self.incoming, self.outgoing):
                while buffer.read(_BYTES_CLEARED):
                    pass
        self.leftovers = True


_run_buffers: Final = trio.lowlevel.RunVar[_Buffers]("brewos_relay.wire.tls")


def _buffers_of_run() -> _Buffers:
    try:
        return _run_buffers.get()
    except LookupError:
        buffers = _Buffers()
        _run_buffers.set(buffers)
        return buffers


class _TlsStream:
    """Encrypts data for a non-blocking socket, and decrypts data from it.

    Encrypted bytes that the socket does not take are kept. `send` then requires the same data again until
    the socket has taken them. The first entry of an outbox never changes, so the data is the same.
    """

    __slots__ = (
        "_broken",
        "_buffers",
        "_early",
        "_over",
        "_shut",
        "_socket",
        "_tls",
        "_unsent",
        "_unsent_from",
    )

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._buffers = _buffers_of_run()
        self._socket = sock
        self._tls = context.wrap_bio(self._buffers.incoming, self._buffers.outgoing, server_side=True)
        self._early = b""
        """Data that came with the handshake."""
        self._unsent = b""
        """Encrypted bytes that the socket has not taken yet."""
        self._unsent_from = 0
        """The length of the data in these bytes."""
        self._shut = False
        """Whether `shut` was called."""
        self._over = False
        """Whether nothing can be received any more: the peer sent close_notify, or the stream is broken."""
        self._broken = False

    @property
    def can_encrypt(self) -> bool:
        """Whether `encrypt` may be called: all encrypted bytes were sent, and close_notify was not."""
        return not self._unsent and not self._shut

    async def shake_hands(self, received: bytes) -> None:
        """Do the handshake of a server; `received` are its first bytes. Raises OSError if it fails."""
        while not self._advance(received):
            await self._send_rest()
            while (data := self._receive()) is None:
                await trio.lowlevel.wait_readable(self._socket)
            if not data:
                raise ConnectionResetError("the peer left during the handshake")
            received = data
        await self._send_rest()

    async def _send_rest(self) -> None:
        while self._unsent:
            await trio.lowlevel.wait_writable(self._socket)
            self._send(self._unsent)

    def _receive(self) -> bytes | None:
        try:
            return self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return None

    def _advance(self, received: bytes) -> bool:
        """Continue the handshake, and return whether it is complete."""
        buffers = self._buffers
        buffers.begin()
        buffers.incoming.write(received)
        try:
            self._tls.do_handshake()
            complete = True
        except ssl.SSLWantReadError:
            complete = False
        except OSError:
            with contextlib.suppress(OSError):
                self._socket.send(buffers.outgoing.read())  # an alert
            raise
        self._send(buffers.outgoing.read())
        if complete and buffers.incoming.pending:
            self._early = self._decrypt(len(received))
        buffers.leftovers = buffers.incoming.pending > 0  # bytes behind the end
        return complete

    def send(self, data: bytes) -> int:
        """Encrypt and send data as much as possible; return how many bytes of it were sent completely."""
        if self._shut:
            return len(data)
        done_bytes = 0
        while done_bytes < len(data):
            if not self._unsent:
                self.encrypt(data[done_bytes : done_bytes + _MOST_BYTES_ENCRYPTED])
            if not self._send(self._unsent):
                break
            done_bytes += self._unsent_from
        return done_bytes

    def encrypt(self, data: bytes) -> None:
        """Encrypt data for `send`, which then requires data that begins with it."""
        buffers = self._buffers
        buffers.begin()
        self._tls.write(data)
        self._unsent = buffers.outgoing.read()
        self._unsent_from = len(data)
        buffers.leftovers = False

    def _send(self, records: bytes) -> bool:
        """Send, and keep what the socket does not take. Return whether it took everything."""
        try:
            sent_bytes = self._socket.send(records)
        except BlockingIOError:
            sent_bytes = 0
        self._unsent = records[sent_bytes:]
        return not self._unsent

    def recv(self, most_bytes: int) -> bytes:
        """Read once, and return the data of all complete records."""
        if self._early:
            early, self._early = self._early, b""
            return early
        if self._over:
            return self._nothing()
        records = self._socket.recv(most_bytes)
        if not records:
            return b""
        buffers = self._buffers
        buffers.begin()
        buffers.incoming.write(records)
        data = self._decrypt(len(records))
        buffers.leftovers = buffers.incoming.pending > 0  # bytes behind the end
        return data or self._nothing()

    def _nothing(self) -> bytes:
        """Tell why nothing was received: by empty bytes for the end, or by an exception."""
        if self._broken:
            raise ConnectionAbortedError("the TLS of this connection is broken")
        if not self._over:
            raise BlockingIOError
        return b""

    def _decrypt(self, length: int) -> bytes:
        """Return the data of the incoming records, which have about this length."""
        buffers = self._buffers
        at_most_bytes = length  # more than the data of a record, unless OpenSSL has kept the record's start
        parts: list[bytes] = []
        try:
            while part := self._tls.read(at_most_bytes):
                parts.append(part)
                if len(part) == at_most_bytes:
                    at_most_bytes = READ_BYTES
                elif not buffers.incoming.pending:
                    break
            else:
                self._over = True  # close_notify
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._over = True  # close_notify, after ours
        except OSError:
            self._over = self._broken = True
        if buffers.outgoing.pending:
            self._answer()
        if self._over and parts:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RD)  # a poller reads once more, and gets the end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _answer(self) -> None:
        """Send an alert, or new keys. The stream is broken if this has to wait: the peer reads nothing."""
        records, sent_bytes = self._buffers.outgoing.read(), 0
        with contextlib.suppress(OSError):
            if not self._unsent:
                sent_bytes = self._socket.send(records)
        if sent_bytes != len(records):
            self._over = self._broken = True

    def shut(self) -> None:
        """Send close_notify if that needs no waiting; discard what is sent from here on."""
        if self._shut:
            return
        self._shut = True
        buffers = self._buffers
        buffers.begin()
        with contextlib.suppress(OSError):  # usually because the peer has not sent its close_notify yet
            self._tls.unwrap()
            self._over = True
        with contextlib.suppress(OSError, MemoryError):
            if not self._unsent:
                self._socket.send(buffers.outgoing.read())
                buffers.leftovers = False


class TlsTransport(Transport):
    """A transport over a socket after its TLS handshake; made by `accept_tls`."""

    __slots__ = ("_tls",)

    def __init__(
        self,
        sock: socket.socket,
        tls: _TlsStream,
        *,
        outbox_limit_bytes: int,
        lag_bytes: int,
        write_batch: WriteBatch,
    ) -> None:
        super().__init__(
            sock, outbox_limit_bytes=outbox_limit_bytes, lag_bytes=lag_bytes, write_batch=write_batch
        )
        self._stream = self._tls = tls
        write_batch.encrypts = True

    def encrypt_held(self) -> None:
        """Encrypt the held write if it is small, so that sending it is only a call of the system."""
        held = self._held
        if held is not None and len(held) <= _MOST_BYTES_AHEAD and self._tls.can_encrypt:
            try:
                self._tls.encrypt(held)
            except OSError:
                self._held = None
                self._break()
            except Exception as error:  # including MemoryError: the others go on
                self.fail(error)

    def _break(self) -> None:
        if not self.broken:
            super()._break()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # the next read returns the end

    def finish_writing(self) -> None:
        """Send close_notify and the end of the stream."""
        self._tls.shut()
        super().finish_writing()

    def close(self) -> None:
        """Send close_notify if that needs no waiting, and close the socket."""
        if not self.closed:
            if self._outbox is None and not self.broken:
                self.finish_writing()
            super().close()


async def accept_tls(transport: Transport, context: ssl.SSLContext, received: bytes = b"") -> TlsTransport:
    """Do the TLS handshake of a server. `transport` is closed from here on in every case.

    `received` was read from the transport before. Raises PeerGone if the handshake fails.
    """
    limits = transport.outbox_limits
    sock = transport.detach()
    try:
        tls = _TlsStream(sock, context)
        await tls.shake_hands(received)
    except OSError as error:
        sock.close()
        raise PeerGone(f"no TLS with this peer: {_reason(error)}") from None
    except BaseException:
        sock.close()
        raise
    return TlsTransport(
        sock, tls, outbox_limit_bytes=limits[0], lag_bytes=limits[1], write_batch=transport.write_batch
    )


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
