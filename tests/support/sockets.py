"""Connected sockets, non-blocking, closed when the block is left."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CHUNK = b"\0" * 4096


class RecordingOwner:
    """An owner of a transport that records what it is asked for."""

    def __init__(self, *, may_start: bool = True) -> None:
        self.may_start = may_start
        self.starts = 0
        self.failures: list[Exception] = []

    def start_writing(self) -> None:
        assert self.may_start
        self.starts += 1

    def fail(self, error: Exception) -> None:
        self.failures.append(error)


@contextmanager
def socket_pair(*, send_buffer_bytes: int | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open two connected sockets; `send_buffer_bytes` hints at what the system holds for the first."""
    near, far = socket.socketpair()
    with near, far:
        if send_buffer_bytes is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


@contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Open two sockets connected by TCP over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname(), timeout=5)
        near, _ = listener.accept()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


def fill(sock: socket.socket) -> int:
    """Write until the send buffer is full. Return the number of bytes written.

    The socket is one of a `socket_pair`: a TCP socket has room again once the system of the peer confirms the
    last bytes, up to 40 ms later.
    """
    assert sock.family == socket.AF_UNIX
    filled_bytes = 0
    for chunk in (_CHUNK, b"\0"):  # a full buffer may still have room for less than a chunk
        try:
            while True:
                filled_bytes += sock.send(chunk)
        except BlockingIOError:
            pass
    return filled_bytes


def read_available(sock: socket.socket) -> bytes:
    """Read the bytes that are available."""
    chunks = []
    try:
        while chunk := sock.recv(65536):
            chunks.append(chunk)
    except BlockingIOError:
        pass
    return b"".join(chunks)


def reset(sock: socket.socket) -> None:
    """Close a TCP socket in a way that its peer sees as an error (RST)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def count_open_files() -> int | None:
    """Count the file descriptors of this process; None where the system does not tell."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else None
