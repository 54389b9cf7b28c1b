"""The Autobahn test suite: find a Python 2.7 for it, and install it there."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

SUITE: Final = "autobahntestsuite==0.8.2"
VIRTUALENV: Final = "virtualenv<20.22"  # the last versions that support Python 2.7
PYTHON27_VARIABLE: Final = "BREWOS_RELAY_PYTHON27"

_INSTALL_S: Final = 600.0
_START_S: Final = 30.0


class Unavailable(Exception):
    """The suite cannot be installed; the text has the reason."""


def foreign_environment() -> dict[str, str]:
    """Return the environment without the variables of this Python."""
    ours = {"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    return {name: value for name, value in os.environ.items() if name not in ours}


def _call(command: Sequence[str | Path], *, timeout_s: float) -> str:
    """Run a command and return its output. Raises Unavailable with the end of its output."""
    program = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            env=foreign_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{program} did not end within {timeout_s:.0f} s") from None
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        shown = " ".join([program, *(str(part) for part in command[1:])])
        end = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise Unavailable(f"`{shown}` failed with exit code {done.returncode}:\n{end}")
    return done.stdout


def _candidates() -> Iterator[str]:
    named = os.environ.get(PYTHON27_VARIABLE)
    if named:
        yield named
    on_path = shutil.which("python2.7")
    if on_path:
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    versions = list(pyenv.glob("versions/2.7*"))
    versions.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)], reverse=True)
    for version in versions:
        yield str(version / "bin" / "python2.7")


def find_python27() -> str:
    """Find a working Python 2.7 interpreter. Raises Unavailable with the list of attempts."""
    tried: list[str] = []
    for candidate in _candidates():
        try:
            answer = _call([candidate, "-c", "import sys; print(sys.version_info[:2])"], timeout_s=_START_S)
        except Unavailable:
            tried.append(f"{candidate} does not start")  # for example a pyenv shim without a target
            continue
        if answer.strip() == "(2, 7)":
            return candidate
        tried.append(f"{candidate} is another Python")
    raise Unavailable(
        f"No Python 2.7 was found: {'; '.join(tried) or 'none is on PATH or among the versions of pyenv'}.\n"
        f"Install one (`pyenv install 2.7.18`), or set {PYTHON27_VARIABLE} to its interpreter."
    )


def install_suite(cache_dir: Path) -> Path:
    """Return the interpreter of a Python 2.7 environment that has the suite, creating it if necessary.

    Raises Unavailable.
    """
    environment = cache_dir / "py2"
    python = environment / "bin" / "python"
    if python.exists():
        with contextlib.suppress(Unavailable):  # incomplete or moved: create it again
            _check(python)
            return python
    python27 = find_python27()
    print(f"Autobahn: installing {SUITE} for {python27}; this takes a minute, once", flush=True)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        if environment.exists():
            shutil.rmtree(environment)
    except OSError as error:
        raise Unavailable(
            f"{cache_dir} cannot be written ({error.strerror}); name another directory with --cache-dir"
        ) from None
    with tempfile.TemporaryDirectory(prefix="brewos-relay-conformance-") as temporary:
        python3 = Path(temporary) / "py3" / "bin" / "python"
        steps: dict[str, list[str | Path]] = {
            "a Python 3 environment": [sys.executable, "-m", "venv", python3.parents[1]],
            VIRTUALENV: [python3, "-m", "pip", "install", "-q", VIRTUALENV],
            "a Python 2.7 environment": [python3, "-m", "virtualenv", "-q", "-p", python27, environment],
            SUITE: [python, "-W", "ignore", "-m", "pip", "install", "-q", SUITE],
        }
        for number, (what, command) in enumerate(steps.items(), start=1):
            print(f"  {number}/{len(steps)} {what}", flush=True)
            _call(command, timeout_s=_INSTALL_S)
    _check(python)
    return python


def _check(python: Path) -> None:
    """Raise Unavailable if the suite is not installed for this interpreter."""
    _call([python, "-W", "ignore", "-c", "import autobahntestsuite.wstest"], timeout_s=_START_S)
