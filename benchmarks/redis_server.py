"""A Redis server for a measurement."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pinning import pinned_to
from ports import free_port

START_S = 10.0


class RedisServer:
    """A server on a port of this machine, which stores nothing. **Owns:** its process."""

    def __init__(self, program: str, folder: Path, cpu: int | None = None) -> None:
        self.port = free_port()
        self._command = [
            *(program, "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(folder), "--tcp-backlog", "128"),
        ]
        self._cpu = cpu
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start the server; return when it answered its first PING (monotonic time)."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, preexec_fn=pinned_to(self._cpu)
        )
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                with self.connect() as client:
                    if client.call("PING") == b"PONG":
                        return time.monotonic()
            except OSError:
                pass
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"Redis did not answer on port {self.port} within {START_S:g} s")
            time.sleep(0.002)

    def kill(self) -> None:
        """Kill the server, if it runs."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    @contextmanager
    def connect(self) -> Iterator["RedisClient"]:
        """Connect to the server. Raises OSError."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_S) as stream:
            yield RedisClient(stream)


class RedisClient:
    """A client for commands with short arguments, whose replies are numbers, lines or texts (RESP2)."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._file = stream.makefile("rb")

    def call(self, *command: str) -> bytes:
        """Send a command and return its reply. Raises OSError if the server ends, or refuses the command."""
        self._stream.sendall(" ".join(command).encode() + b"\r\n")
        line = self._file.readline()
        if line[:1] not in (b"+", b":", b"$"):
            raise OSError(f"Redis answered {line!r}")
        if line[:1] != b"$":
            return line[1:].strip()
        content = self._file.read(int(line[1:]) + 2)
        return content[:-2]


@contextmanager
def running_redis(program: str, *, cpu: int | None = None) -> Iterator[RedisServer]:
    """Run a Redis server while the block runs."""
    with tempfile.TemporaryDirectory(prefix="brewos-relay-redis-") as folder:
        server = RedisServer(program, Path(folder), cpu)
        server.start()
        try:
            yield server
        finally:
            server.kill()
