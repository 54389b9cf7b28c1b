"""Resources that a process uses, read from Linux."""

import os
import re
from pathlib import Path


def processor_s(pid: int) -> float:
    """Read how much processor time a process has taken."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def most_memory_mib(pid: int) -> int:
    """Read how much memory a process had at most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def open_files(pid: int) -> int:
    """Count the files and connections that a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def own_open_files() -> int:
    """Count the files and connections that this process has open."""
    return len(list(Path("/dev/fd").iterdir()))
