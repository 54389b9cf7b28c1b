"""Progress and warnings of the scripts, and the machine that they run on."""

import os
import platform
import sys
import time
from pathlib import Path


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    rule = "!" * 100
    say(f"{rule}\n!! {text}\n{rule}")


def describe_machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    load_1min, _, _ = os.getloadavg()
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of {model}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {load_1min:.1f}"
    )
