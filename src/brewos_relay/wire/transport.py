"""Transport: a non-blocking socket with a bounded outbox; TransportStream: the same as a Trio stream."""

import contextlib
import fcntl
import math
import socket
import sys
import termios
from collections import deque
from typing import Final, Protocol

import trio

READ_BYTES: Final = 64 * 1024

_WOULD_WAIT: Final = (BlockingIOError, InterruptedError)


class WriteBatch:
    """Holds the writes of many transports while its block runs, and then does them one after the other.

    So the code of the system for sending stays in the processor's caches. Writes over TLS are encrypted
    before, for the same reason. Small writes of one transport become one write.
    """

    __slots__ = ("encrypts", "held", "holding")

    def __init__(self) -> None:
        self.holding = False
        self.held: list[Transport] = []
        self.encrypts = False
        """Whether some of the transports have to encrypt."""

    def __enter__(self) -> None:
        self.holding = True

    def __exit__(self, *_exception: object) -> None:
        self.release()

    def release(self) -> None:
        """Do the held writes, and hold no more."""
        self.holding = False
        held, self.held = self.held, []
        if self.encrypts:
            for transport in held:
                transport.encrypt_held()
        for transport in held:  # as `Transport._write_now`, without a call for each
            data = transport._held
            if data is None:
                continue
            transport._held = None
            try:
                try:
                    sent = transport._stream.send(data)
                except _WOULD_WAIT:
                    sent = 0
                except OSError:
                    transport._break()
                    continue
                if sent != len(data):
                    transport._keep_rest(data, sent)
            except Exception as error:  # including MemoryError: the others go on
                transport.fail(error)


_AT_ONCE: Final = WriteBatch()
"""Holds no writes."""


class ByteStream(Protocol):
    """A socket, or TLS over one. Its methods raise an OSError if they would have to wait."""

    def send(self, data: bytes, /) -> int:
        """Write as much as possible; return how many bytes that was."""
        ...

    def recv(self, most_bytes: int, /) -> bytes:
        """Read once; empty bytes are the end."""
        ...


class Owner(Protocol):
    """The owner of a transport while it may be written to without waiting."""

    def start_writing(self) -> None:
        """Start a task that runs `Transport.flush`: the outbox is no longer empty."""

    def fail(self, error: Exception) -> None:
        """End the connection: a held write failed by another exception than OSError.

        Part of the write may be lost.
        """


class Transport:
    """Owns a connected, non-blocking socket until `close`.

    Bytes are written at once, or at the end of the block of `write_batch`, as far as the system takes them.
    The rest waits in the outbox, at most `outbox_limit_bytes` of it, until a task runs `flush`.
    """

    __slots__ = (
        "_held",
        "_lag_bytes",
        "_outbox",
        "_outbox_limit_bytes",
        "_socket",
        "_stream",
        "_wakes",
        "broken",
        "fd",
        "outbox_bytes",
        "owner",
        "write_batch",
    )

    def __init__(
        self,
        sock: socket.socket,
        *,
        outbox_limit_bytes: int,
        lag_bytes: int | None = None,
        write_batch: WriteBatch | None = None,
    ) -> None:
        self._socket = sock
        self.fd = sock.fileno()
        self._stream: ByteStream = sock  # its methods are not kept: two of them take 144 bytes
        self.write_batch = write_batch or _AT_ONCE
        self._held: bytes | None = None
        self._outbox: deque[bytes] | None = None
        self._outbox_limit_bytes = outbox_limit_bytes
        self._lag_bytes = outbox_limit_bytes if lag_bytes is None else min(lag_bytes, outbox_limit_bytes)
        self._wakes = 0
        self.broken = False
        """Whether the stream failed. An end by the peer is no failure."""
        self.outbox_bytes = 0
        """How many bytes wait to be written."""
        self.owner: Owner | None = None

    @property
    def family(self) -> int:
        """The address family of the socket."""
        return self._socket.family

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.fd < 0

    @property
    def outbox_limits(self) -> tuple[int, int]:
        """The limits of the outbox in bytes: for all writes, and for writes without `keep`."""
        return self._outbox_limit_bytes, self._lag_bytes

    def limit_outbox(self, limit_bytes: int) -> None:
        """Lower the limits of the outbox, for all writes."""
        self._outbox_limit_bytes = min(self._outbox_limit_bytes, limit_bytes)
        self._lag_bytes = min(self._lag_bytes, limit_bytes)

    def read(self) -> bytes | None:
        """Read up to 64 KiB; None if there is nothing to read, empty bytes at the end of the stream."""
        try:
            return self._stream.recv(READ_BYTES)
        except _WOULD_WAIT:
            return None
        except OSError:
            self._break()
            return b""

    def peek(self, most_bytes: int) -> bytes | None:
        """Return what `read` would return, and leave it there; only without TLS."""
        try:
            return self._socket.recv(most_bytes, socket.MSG_PEEK)
        except _WOULD_WAIT:
            return None
        except OSError:
            self._break()
            return b""

    def skip(self, length: int) -> None:
        """Read bytes that `peek` returned, and discard them."""
        with contextlib.suppress(OSError):
            self._socket.recv(length)

    def write(self, data: bytes, keep: bool = True) -> bool:
        """Write, or add to the outbox; False if the outbox has no room, and then nothing is written.

        Without `keep`, the outbox has room for `lag_bytes` only. A broken stream accepts everything: `read`
        returns its end.
        """
        if self._outbox is None:
            held = self._held
            if held is not None:
                if len(held) + len(data) <= self._lag_bytes:  # the outbox would have room for both
                    self._held = held + data
                    return True
                self._held = None
                self._write_now(held)  # its result decides about this write
                return self.write(data, keep)
            if self.write_batch.holding:
                self.write_batch.held.append(self)
                self._held = data
            else:
                self._write_now(data)
            return True
        if self.outbox_bytes + len(data) > (self._outbox_limit_bytes if keep else self._lag_bytes):
            return False
        self._outbox.append(data)
        self.outbox_bytes += len(data)
        return True

    def _write_now(self, data: bytes) -> None:
        """Write as much as the system takes; the rest waits in the outbox."""
        try:
            sent = self._stream.send(data)
        except _WOULD_WAIT:
            sent = 0
        except OSError:
            self._break()
            return
        if sent != len(data):
            self._keep_rest(data, sent)

    def _keep_rest(self, data: bytes, sent: int) -> None:
        """Keep in the outbox what the system did not take of a write."""
        self._outbox = deque((data[sent:],))
        self.outbox_bytes = len(data) - sent
        if self.owner is not None:
            self.owner.start_writing()

    def encrypt_held(self) -> None:
        """Prepare the held write for sending; a plain transport has nothing to do."""

    def fail(self, error: Exception) -> None:
        """Drop the held write, and end the stream."""
        self._held = None
        if self.owner is not None:
            self.owner.fail(error)
        else:
            self._break()

    def _try_send(self, data: bytes) -> int:
        try:
            return self._stream.send(data)
        except _WOULD_WAIT:
            return 0
        except OSError:
            self._break()
            return len(data)

    def _break(self) -> None:
        """Note that the stream has failed."""
        self.broken = True

    def drop_unsent_writes(self) -> None:
        """Drop the outbox, except for its first write, which may have been sent in part."""
        if self._outbox is not None:
            self._outbox = deque((self._outbox[0],))
            self.outbox_bytes = len(self._outbox[0])

    async def flush(self, *, stall_s: float) -> bool:
        """Write until the outbox is empty; False if the peer read nothing for `stall_s`.

        A peer that reads slowly is not stalled, even if the system reports for long that there is no room.

        Raises trio.ClosedResourceError after `wake` or `close`.
        """
        wakes = self._wakes
        while self._outbox is not None:
            untaken_bytes = self._untaken_bytes()
            with trio.move_on_after(stall_s) as stalled:
                await trio.lowlevel.wait_writable(self.fd)
            if wakes != self._wakes:  # after the wait had ended, and before this task ran
                raise trio.ClosedResourceError("woken")
            if stalled.cancelled_caught:
                if self._untaken_bytes() < untaken_bytes:
                    continue
                return False
            while self._outbox:
                chunk = self._outbox[0]
                sent = self._try_send(chunk)
                self.outbox_bytes -= sent
                if sent < len(chunk):
                    self._outbox[0] = chunk[sent:]
                    break
                self._outbox.popleft()
            else:
                self._outbox = None
        return True

    def _untaken_bytes(self) -> int:
        """Ask the system how many sent bytes the peer has not acknowledged; 0 if it cannot tell."""
        try:
            return int.from_bytes(fcntl.ioctl(self.fd, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    async def wait_readable(self) -> None:
        """Wait for something to read, or for the end of the stream.

        Raises trio.ClosedResourceError after `wake` or `close`.
        """
        await trio.lowlevel.wait_readable(self.fd)

    def finish_writing(self) -> None:
        """Send the end of the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def detach(self) -> socket.socket:
        """Return the socket; this transport is closed from here on."""
        self.fd = -1
        return self._socket

    def wake(self) -> None:
        """Make the tasks that wait for this stream raise trio.ClosedResourceError."""
        if not self.closed:
            self._wakes += 1
            trio.lowlevel.notify_closing(self.fd)

    def close(self) -> None:
        """Close the socket, and drop the outbox."""
        if not self.closed:
            self.wake()
            self.fd = -1
            self._held = self._outbox = None
            self.outbox_bytes = 0
            self._socket.close()


class TransportStream(trio.abc.HalfCloseableStream):
    """A Trio stream over a transport, plain or TLS. **Owns:** the transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._left = b""

    def detach(self) -> tuple[Transport, bytes]:
        """Return the transport, and the data that was read from it but not received.

        Closing the stream still closes the transport.
        """
        left, self._left = self._left, b""
        return self._transport, left

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return it, or empty bytes at the end; see `trio.abc.ReceiveStream`."""
        transport = self._transport
        self._check_open()
        await trio.lowlevel.checkpoint()
        data: bytes | None = self._left
        if not data:
            while (data := transport.read()) is None:
                await transport.wait_readable()
            if transport.broken:
                raise trio.BrokenResourceError("the connection is broken")
        most_bytes = READ_BYTES if max_bytes is None else max_bytes
        self._left = data[most_bytes:]
        return data[:most_bytes]

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all data, and wait until the system has it; see `trio.abc.SendStream`."""
        transport = self._transport
        self._check_open()
        await trio.lowlevel.checkpoint()
        taken = transport.write(bytes(data)) if data else True
        if transport.outbox_bytes:
            await transport.flush(stall_s=math.inf)
        if transport.broken or not taken:
            raise trio.BrokenResourceError("the connection is broken")

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the system has room; see `trio.abc.SendStream`."""
        self._check_open()
        await trio.lowlevel.wait_writable(self._transport.fd)

    async def send_eof(self) -> None:
        """Send the end of the stream."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        self._transport.finish_writing()

    async def aclose(self) -> None:
        """Close the connection."""
        self._transport.close()
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._transport.closed:
            raise trio.ClosedResourceError("this stream was closed")
