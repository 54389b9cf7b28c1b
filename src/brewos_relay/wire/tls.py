"""TLS in a transport: a non-blocking SSLSocket in place of the socket.

Memory BIOs would take several more calls for each read and write. OpenSSL reads no further than the record
that it returns, and a record is always smaller than one read. So no data is left in OpenSSL while the socket
has none, and a poller that watches the socket misses nothing.
"""

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final

import trio

from brewos_relay.errors import PeerGone
from brewos_relay.wire.transport import Transport, WriteBatch

_HANDSHAKE_RECORD: Final = b"\x16"


def begins_like_tls(data: bytes) -> bool:
    """Whether these first bytes of a connection can be those of a TLS handshake (RFC 8446 §5.1)."""
    return data[:1] == _HANDSHAKE_RECORD


class _TlsStream:
    """The methods of an SSLSocket that know TLS only.

    Its `send` and `recv` would be one more call, and continue without TLS after its end.
    """

    __slots__ = ("recv", "send")

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.send: Callable[[bytes], int] = tls.write
        self.recv: Callable[[int], bytes] = tls.read


class TlsTransport(Transport):
    """A transport over a socket after its TLS handshake; made by `accept_tls`.

    A change of keys in TLS can make a read wait until it can write, or a write until it can read. A peer that
    causes this has stopped reading, or has sent half a message. Its stream then counts as broken, since
    waiting for it would keep the process busy.

    OpenSSL takes a write as a whole or not at all, and requires the same bytes again until it has. The first
    entry of an outbox never changes, so it gets them.
    """

    __slots__ = ("_sent_close_notify", "_tls")

    def __init__(
        self, tls: ssl.SSLSocket, *, outbox_limit_bytes: int, lag_bytes: int, write_batch: WriteBatch
    ) -> None:
        super().__init__(
            tls, outbox_limit_bytes=outbox_limit_bytes, lag_bytes=lag_bytes, write_batch=write_batch
        )
        self._tls = tls
        self._stream = _TlsStream(tls)
        self._sent_close_notify = False

    def _break(self) -> None:
        if not self.broken:
            super()._break()
            # The method of SSLSocket would continue without TLS. This one makes the next read return the end.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._tls, socket.SHUT_RDWR)

    def finish_writing(self) -> None:
        """Send close_notify and the end of the stream."""
        if self._sent_close_notify:
            return
        self._sent_close_notify = True
        stream = self._stream
        assert isinstance(stream, _TlsStream)
        with contextlib.suppress(OSError):  # usually because the peer has not sent its close_notify yet
            self._tls.unwrap()
            stream.recv = _nothing  # it has, and the socket has no TLS any more
        stream.send = _take_all
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._tls, socket.SHUT_WR)

    def close(self) -> None:
        """Send close_notify if that needs no waiting, and close the socket."""
        if not self.closed:
            if self._outbox is None and not self.broken:
                self.finish_writing()
            super().close()


def _nothing(_most_bytes: int) -> bytes:
    return b""


def _take_all(data: bytes) -> int:
    return len(data)


async def accept_tls(transport: Transport, context: ssl.SSLContext) -> TlsTransport:
    """Do the TLS handshake of a server. `transport` is closed from here on in every case.

    Raises PeerGone if the handshake fails.
    """
    limits = transport.outbox_limits
    plain = transport.detach()
    tls: ssl.SSLSocket | None = None
    try:
        plain.getpeername()  # without a peer, an SSLSocket would be left half-made
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
