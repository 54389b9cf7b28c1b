"""Progress and warnings of the scripts, and the machine that they run on."""

import os
import platform
import sys
import sysconfig
import time
from pathlib import Path


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    rule = "!" * 100
    say(f"{rule}\n!! {text}\n{rule}")


def optimisation(config_args: str, base_prefix: str) -> str | None:
    """Return how a Python was optimised, as far as its configuration tells; None if it was not.

    That of Debian describes its shared library, and not the interpreter, which is optimised.
    """
    if "--enable-optimizations" in config_args:
        return "optimised"
    return "the distribution's build" if base_prefix == "/usr" else None


def is_optimised() -> bool:
    """Whether this Python is an optimised build."""
    return optimisation(sysconfig.get_config_var("CONFIG_ARGS") or "", sys.base_prefix) is not None


def describe_python() -> str:
    """Name this Python's version and build."""
    found = optimisation(sysconfig.get_config_var("CONFIG_ARGS") or "", sys.base_prefix)
    return f"Python {platform.python_version()} ({found or 'not optimised'})"


def describe_machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores of {model}, Linux {platform.release()}"
