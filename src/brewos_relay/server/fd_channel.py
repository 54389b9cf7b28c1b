"""FdChannel: messages and open files between two processes of one machine, over a Unix socket.

The parent makes each channel as a pair of connected sockets and gives one end to each process. So no other
process can reach it, and nothing of it is on the disk.
"""

import logging
import os
import socket
import struct
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

import msgspec
import trio

_HEAD: Final = struct.Struct("!IB")
"""Length of the message in bytes, and how many files come with it."""
_READ_BYTES: Final = 64 * 1024
_MOST_FILES: Final = 64
_FILE_BYTES: Final = array("i").itemsize
_WAITING_BYTES: Final = 32 * 1024 * 1024
"""The most bytes that wait for the other end. It is hung, if they become more."""
_RECEIVE_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)

log = logging.getLogger(__name__)

_encode: Final = msgspec.msgpack.Encoder().encode

Received = TypeVar("Received")


class FdChannel(Generic[Received]):
    """One end of a channel. Messages are structs, encoded as MessagePack.

    **Owns:** its socket, until `close`. A task has to run `run`, which writes what the system does not take
    at once.
    """

    def __init__(self, sock: socket.socket, receives: Any) -> None:
        """Use a connected Unix stream socket. `receives` is the union of the structs that arrive here."""
        sock.setblocking(False)
        self._socket = sock
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(receives)
        self._received = bytearray()
        self._groups: deque[list[int]] = deque()
        self._waiting: deque[tuple[bytes, Sequence[int]]] = deque()
        self._waiting_bytes = 0
        self._has_waiting = trio.Event()
        self.broken = False
        """Whether the other end has gone, or the channel was closed."""

    def send(self, message: msgspec.Struct, files: Sequence[socket.socket] = ()) -> bool:
        """Send a message, in order, without waiting. Return False if the other end has gone.

        The files are closed here once they are sent.
        """
        frame, numbers = _frame(message, len(files)), [each.detach() for each in files]
        if self.broken or self._waiting_bytes + len(frame) > _WAITING_BYTES:
            _close(numbers)
            self._break()
            return False
        self._waiting.append((frame, numbers))
        self._waiting_bytes += len(frame)
        if len(self._waiting) == 1:
            self._write_waiting()
        if self._waiting:
            self._has_waiting.set()
        return not self.broken

    def try_send(self, message: msgspec.Struct, files: Sequence[int]) -> bool:
        """Send a message with files if the system takes it at once; otherwise send nothing and return False.

        The files stay open here.
        """
        if self.broken or self._waiting:
            return False
        frame = _frame(message, len(files))
        try:
            sent = self._write(frame, files)
        except ConnectionError:
            self._break()
            return False
        except OSError:
            return False  # too many files are on their way, or there is no memory
        if 0 < sent < len(frame):
            self._waiting.append((frame[sent:], ()))
            self._waiting_bytes += len(frame) - sent
            self._has_waiting.set()
        return sent > 0

    def _write(self, data: bytes, files: Sequence[int]) -> int:
        """Write the beginning of some data, with the files; return how many bytes the system took."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files))] if files else []
        try:
            return self._socket.sendmsg((data,), rights, _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            return 0

    def _write_waiting(self) -> None:
        """Write what waits, as far as the system takes it."""
        while self._waiting and not self.broken:
            data, files = self._waiting[0]
            try:
                sent = self._write(data, files)
            except OSError:
                self._break()
                return
            if not sent:
                return
            _close(files)
            self._waiting_bytes -= sent
            if sent == len(data):
                self._waiting.popleft()
            else:
                self._waiting[0] = (data[sent:], ())

    def _break(self) -> None:
        self.broken = True
        self._has_waiting.set()

    async def run(self) -> None:
        """Write what waits, until the channel breaks or is closed."""
        while not self.broken:
            await self._has_waiting.wait()
            while self._waiting and not self.broken:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self._socket)
                self._write_waiting()
            if not self.broken:
                self._has_waiting = trio.Event()

    async def receive(self) -> tuple[Received, list[int]]:
        """Wait for the next message. Return it with its files, which then belong to the caller.

        If not all of its files could be received, it comes without any. Raises trio.EndOfChannel if the other
        end has gone.
        """
        while (found := self._next()) is None:
            if self._socket.fileno() < 0:
                raise trio.EndOfChannel
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except trio.ClosedResourceError:
                raise trio.EndOfChannel from None
            self._read()
        return found

    def receive_now(self) -> tuple[Received, list[int]]:
        """Receive the first message, blocking, before Trio runs. Raises trio.EndOfChannel."""
        self._socket.setblocking(True)
        while (found := self._next()) is None:
            self._read()
        self._socket.setblocking(False)
        return found

    def _read(self) -> None:
        space = socket.CMSG_SPACE(_MOST_FILES * _FILE_BYTES)
        try:
            data, rights, flags, _ = self._socket.recvmsg(_READ_BYTES, space, _RECEIVE_FLAGS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, rights, flags = b"", [], 0
        # The files arrive with the first byte of their message, and one call returns those of one message.
        numbers = array("i")
        for level, kind, content in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(content[: len(content) - len(content) % _FILE_BYTES])
        if numbers or flags & socket.MSG_CTRUNC:
            self._groups.append(list(numbers))
        if not data:
            self._break()
            raise trio.EndOfChannel
        self._received += data

    def _next(self) -> tuple[Received, list[int]] | None:
        """Take the next complete message out of what was received."""
        if len(self._received) < _HEAD.size:
            return None
        length, count = _HEAD.unpack_from(self._received)
        end = _HEAD.size + length
        if len(self._received) < end:
            return None
        data = bytes(self._received[_HEAD.size : end])
        del self._received[:end]
        files: list[int] = []
        if count:
            files = self._groups.popleft() if self._groups else []
            if len(files) != count:
                _close(files)
                files = []
        try:
            return self._decoder.decode(data), files
        except msgspec.MsgspecError as error:  # another version of the relay
            log.warning("dropped an unknown message between two processes of this machine: %s", error)
            _close(files)
            return self._next()

    def close(self) -> None:
        """Close the channel, and the files that were not sent or taken."""
        self._break()
        for _, files in self._waiting:
            _close(files)
        for group in self._groups:
            _close(group)
        self._waiting.clear()
        self._groups.clear()
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _frame(message: msgspec.Struct, files: int) -> bytes:
    encoded = _encode(message)
    return _HEAD.pack(len(encoded), files) + encoded


def _close(files: Sequence[int]) -> None:
    for number in files:
        with suppress(OSError):
            os.close(number)
