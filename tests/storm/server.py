"""The server that is stopped and started again."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import trio

from support.logs import errors_in
from support.process import KEY, environment, machine_id
from support.resources import most_memory_mib, processor_s

START_S: Final = 20.0
APP_ORIGIN: Final = "https://cloud.example"
"""The Origin of the apps."""


class Relay:
    """The server: a process that is restarted on one port, with one folder."""

    def __init__(self, folder: Path, *, admit_rate: float, tls: bool) -> None:
        self.folder = folder
        self.log_file = folder / "server.log"
        self.port = 0
        self._environ = environment(
            BREWOS_RELAY_ADMIT_RATE=admit_rate,
            BREWOS_RELAY_LOG_LEVEL="warning",
            BREWOS_RELAY_LOG_FORMAT="json",
            BREWOS_RELAY_ALLOWED_ORIGINS=APP_ORIGIN,
            BREWOS_RELAY_TLS_SELF_SIGNED=tls,
            DATA_DIR=folder,
        )
        self._process: trio.Process | None = None

    async def import_machines(self, count: int) -> None:
        csv = self.folder / "machines.csv"
        csv.write_text("".join(f"{machine_id(number)},{KEY}\n" for number in range(count)))
        command = [sys.executable, "-m", "brewos_relay", "device", "import", str(csv)]
        await trio.run_process(command, cwd=self.folder, env=self._environ, capture_stdout=True)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "brewos_relay", "serve", "--host", "127.0.0.1"]
        with self.log_file.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                [*command, "--port", str(self.port)],
                cwd=self.folder,
                env=self._environ,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        output = b""
        assert self._process.stdout is not None
        with trio.move_on_after(START_S):
            while data := await self._process.stdout.receive_some():
                output += data
                if found := re.search(rb"https?://127\.0\.0\.1:(\d+)\D", output):
                    self.port = int(found[1])
                    return
        raise SystemExit(f"the server did not start: {self.log_file.read_text()[-2000:]}")

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(number)
        code = await self._process.wait()
        await self._process.stdout.aclose()
        return code

    def used(self) -> tuple[float, int]:
        """Read its CPU time in s and its most memory in MiB."""
        assert self._process is not None
        return processor_s(self._process.pid), most_memory_mib(self._process.pid)

    def errors(self) -> list[str]:
        return errors_in(self.log_file.read_text(errors="replace"))
