"""Programs in terminals: what they print, and how they end."""

import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

WITHIN_S: Final = 30.0


class Terminal:
    """A program in a terminal, and what it printed."""

    def __init__(self, process: trio.Process, output: Path) -> None:
        self._process = process
        self._output = output

    def printed(self) -> str:
        return self._output.read_text()

    async def wait_for(self, pattern: str, *, after: int = 0) -> re.Match[str]:
        """Wait until it prints something, after the characters that it has printed before."""
        with trio.move_on_after(WITHIN_S):
            while not (found := re.search(pattern, self.printed()[after:])):
                assert self._process.poll() is None, self.printed()
                await trio.sleep(0.02)
            return found
        raise AssertionError(f"{self.printed()[after:]}\nhas no {pattern!r}")

    def found(self, pattern: str) -> str:
        """Return the part of the output that matches a pattern."""
        match = re.search(pattern, self.printed())
        assert match, f"{self.printed()}\nhas no {pattern!r}"
        return match[0]

    async def wait(self) -> int:
        """Wait for the end; return the exit code."""
        with trio.fail_after(2 * WITHIN_S):
            return await self._process.wait()

    async def press(self, key: signal.Signals) -> int:
        """Press Ctrl-C or Ctrl-\\, and wait for the end."""
        self._process.send_signal(key)
        with trio.move_on_after(WITHIN_S):
            return await self._process.wait()
        raise AssertionError(f"{self.printed()}\nand it does not end")


async def open_terminal(
    nursery: trio.Nursery, command: Sequence[str], *, folder: Path, env: Mapping[str, str], output: Path
) -> Terminal:
    """Start a program, which is killed when the nursery is cancelled."""
    with output.open("wb") as file:
        process = await trio.lowlevel.open_process(command, cwd=folder, env=env, stdout=file, stderr=file)
    nursery.start_soon(_kill_in_the_end, process)
    return Terminal(process, output)


async def _kill_in_the_end(process: trio.Process) -> None:
    try:
        await trio.sleep_forever()
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await process.wait()
