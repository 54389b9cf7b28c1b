"""TLS in a transport: a non-blocking SSLSocket in the place of the socket.

Over memory BIOs each read and each write would take several calls more. OpenSSL reads no further than the
record that it was asked for, and one record is always smaller than one read: so nothing ever waits inside
of it while the socket looks empty, and a poller that watches the socket misses nothing.
"""

import contextlib
import socket
import ssl
from typing import Final

import trio

from brewos_relay.errors import PeerGone
from brewos_relay.wire.transport import Transport, WriteBatch

_HANDSHAKE_RECORD: Final = b"\x16"


def begins_like_tls(data: bytes) -> bool:
    """Whether these first bytes of a connection can be those of a TLS handshake (RFC 8446 §5.1)."""
    return data[:1] == _HANDSHAKE_RECORD


class TlsTransport(Transport):
    """A transport over a socket of which the TLS handshake is done; made by `accept_tls`.

    The rules of TLS for new keys in mid-connection could make a read wait for room to write, or a write wait
    for something to read. A peer that drives it there has stopped reading, or has said half a message: its
    stream is broken then, since waiting for it would keep a whole process busy.

    OpenSSL takes a write as a whole or not at all, and wants the very same bytes again until it has: as the
    first of an outbox is never changed, it gets them.
    """

    __slots__ = ("_said_goodbye", "_tls")

    def __init__(
        self, tls: ssl.SSLSocket, *, outbox_limit_bytes: int, lag_bytes: int, write_batch: WriteBatch
    ) -> None:
        super().__init__(
            tls, outbox_limit_bytes=outbox_limit_bytes, lag_bytes=lag_bytes, write_batch=write_batch
        )
        self._tls = tls
        # These know TLS only, and are a call less than `send` and `recv`, which go on in plain after its end.
        self._send = tls.write
        self._recv = tls.read
        self._said_goodbye = False

    def _break(self) -> None:
        if not self.broken:
            super()._break()
            # Not of the SSLSocket: that would go on without TLS. It makes the end show when it is read.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def finish_writing(self) -> None:
        """Tell the peer that nothing more will come: close_notify, and the end of the stream."""
        if self._said_goodbye:
            return
        self._said_goodbye = True
        with contextlib.suppress(OSError):  # mostly: the peer has not said the same yet
            self._tls.unwrap()
            self._recv = _nothing  # it has; what is left of the socket knows no TLS any more
        self._send = _take_all
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_WR)

    def close(self) -> None:
        """Say goodbye as far as that goes without waiting, and close the socket."""
        if not self.closed:
            if self._outbox is None and not self.broken:
                self.finish_writing()
            super().close()


def _nothing(_most_bytes: int) -> bytes:
    return b""


def _take_all(data: bytes) -> int:
    return len(data)


async def accept_tls(transport: Transport, context: ssl.SSLContext) -> TlsTransport:
    """Do the server's part of a TLS handshake; `transport` is closed from here on, whatever happens.

    Raises PeerGone if there is none to be had with this peer.
    """
    limits = transport.outbox_limits
    plain = transport.detach()
    tls: ssl.SSLSocket | None = None
    try:
        plain.getpeername()  # of a socket that has none any more, an SSLSocket would be lost half-made
        tls = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(tls)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(tls)
    except OSError as error:
        (tls or plain).close()
        raise PeerGone(f"no TLS with this peer: {_reason(error)}") from None
    except BaseException:
        (tls or plain).close()
        raise
    return TlsTransport(
        tls, outbox_limit_bytes=limits[0], lag_bytes=limits[1], write_batch=transport.write_batch
    )


def _reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or type(error).__name__
