"""The processes that a server has started, from /proc."""

import ctypes
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_KERNEL = 2
"""The parent of all threads of the kernel."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    """A running process. Its id may be given to another one later, but not with the same start."""

    pid: int
    parent: int
    name: str
    start: int
    """When it started, in ticks since the system started."""
    cpu_s: float = field(compare=False)
    """Its CPU time, and that of its children that have ended."""

    def kill(self) -> None:
        """Kill it, if it still runs, and wait for its end if it was adopted."""
        if _read(self.pid) == self:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(self.pid, 0)


def descendants(pid: int) -> list[Process]:
    """Return the children of a process and their descendants, parents first."""
    everything = _read_all()
    found: list[Process] = []
    parents = {pid}
    while children := [process for process in everything if process.parent in parents]:
        found += children
        parents = {process.pid for process in children}
    return found


def adopt_orphans() -> None:
    """Become the parent of each descendant whose parent ends: its CPU time is not that of others."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def cpu_s_of_others() -> float:
    """Return the CPU time of all other processes in s, without the descendants of this one.

    A process that has ended counts as long as its parent runs. The threads of the kernel do not count: they
    also work for this process and its descendants.
    """
    mine = {os.getpid(), *(process.pid for process in descendants(os.getpid()))}
    return sum(
        process.cpu_s
        for process in _read_all()
        if process.pid not in mine and _KERNEL not in (process.pid, process.parent)
    )


def cpu_s_of(pid: int) -> float:
    """Return the CPU time of a process in s, of all its threads. Raises OSError if it has ended."""
    return time.clock_gettime((~pid << 3) | 2)  # see clock_getcpuclockid(3)


def pss_kib(pid: int) -> int:
    """Return the proportional memory of a process in KiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def _read_all() -> list[Process]:
    return [
        process
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and (process := _read(int(entry.name)))
    ]


def _read(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name is in parentheses, and may contain some.
    name, _, rest = text[text.index("(") + 1 :].rpartition(")")
    fields = rest.split()
    cpu_s = sum(map(int, fields[11:15])) / _TICKS_PER_S
    return Process(pid=pid, parent=int(fields[1]), name=name, start=int(fields[19]), cpu_s=cpu_s)
