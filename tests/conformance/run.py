"""Run the core cases of the Autobahn test suite against the relay's WebSocket layer.

    python tests/conformance/run.py [--report-dir DIR] [--cache-dir DIR]

The suite runs on Python 2.7 only. One is looked for, the suite is installed for it once and kept in the cache
directory, and its fuzzing client runs against `echo_server.py`. Exit code 0: the relay conforms, or there is
no Python 2.7 to find out with (a banner says so); 1: it does not conform, or the run broke off.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

SUITE: Final = "autobahntestsuite==0.8.2"
VIRTUALENV: Final = "virtualenv<20.22"  # the last ones that can make an environment for Python 2.7
PYTHON27_VARIABLE: Final = "BREWOS_RELAY_PYTHON27"

EXCLUDED: Final = ("9.*", "12.*", "13.*")  # performance, and the compression that the relay never agrees to
CORE_CASES: Final = 247
MOST_NON_STRICT: Final = 4

HERE: Final = Path(__file__).resolve().parent
DEFAULT_CACHE_DIR: Final = HERE.parents[1] / ".nox" / "autobahn"
AGENT: Final = "brewos-relay"

_INSTALL_S: Final = 600.0
_START_S: Final = 20.0
_RUN_S: Final = 900.0
_PROGRESS_EVERY: Final = 25


class Unavailable(Exception):  # noqa: N818 - not a fault: the cases are skipped
    """The suite cannot be run here; the text says why."""


class RunFailed(Exception):  # noqa: N818 - says what failed, as the caller prints it
    """The suite is there, and its run did not come to an end."""


# Python 2.7 and the suite


def _say(text: str) -> None:
    print(text, flush=True)


def _foreign_environment() -> dict[str, str]:
    """Give the environment without what belongs to the Python that runs this."""
    ours = {"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    return {name: value for name, value in os.environ.items() if name not in ours}


def _call(command: Sequence[str | Path], *, timeout_s: float) -> str:
    """Run a command and return what it printed. Raises Unavailable with the end of its output."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            env=_foreign_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{Path(command[0]).name} did not end within {timeout_s:.0f} s") from None
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode != 0:
        end = "\n".join(done.stdout.strip().splitlines()[-8:])
        shown = " ".join([Path(command[0]).name, *(str(part) for part in command[1:])])
        raise Unavailable(f"`{shown}` failed with exit code {done.returncode}:\n{end}")
    return done.stdout


def _python27_candidates() -> Iterator[str]:
    named = os.environ.get(PYTHON27_VARIABLE)
    if named:
        yield named
    on_path = shutil.which("python2.7")
    if on_path:
        yield on_path
    roots = dict.fromkeys(
        [Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser(), Path("~/.pyenv").expanduser()]
    )
    found = [version for root in roots for version in root.glob("versions/2.7*")]
    for version in sorted(
        found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)], reverse=True
    ):
        yield str(version / "bin" / "python2.7")


def find_python27() -> str:
    """Find an interpreter that really is a Python 2.7. Raises Unavailable with what was tried."""
    tried: list[str] = []
    for candidate in _python27_candidates():
        try:
            answer = _call([candidate, "-c", "import sys; print(sys.version_info[:2])"], timeout_s=_START_S)
        except Unavailable:
            tried.append(f"{candidate} does not start")  # the shims of pyenv, for one, may lead nowhere
            continue
        if answer.strip() == "(2, 7)":
            return candidate
        tried.append(f"{candidate} is Python {answer.strip()}")
    detail = "; ".join(tried) or "none on PATH, none among pyenv's versions"
    raise Unavailable(
        f"no Python 2.7 found ({detail}).\n"
        f"Install one (`pyenv install 2.7.18`), or set {PYTHON27_VARIABLE} to its interpreter."
    )


def install_suite(cache_dir: Path) -> Path:
    """Return the interpreter of a Python 2.7 environment that has the suite, making it if need be.

    Raises Unavailable.
    """
    environment = cache_dir / "py2"
    python = environment / "bin" / "python"
    if python.exists():
        with contextlib.suppress(Unavailable):  # half made, or moved: made again
            _call([python, "-W", "ignore", "-c", "import autobahntestsuite.wstest"], timeout_s=_START_S)
            _say(f"Autobahn: {SUITE} is installed in {environment}")
            return python
    python27 = find_python27()
    _say(f"Autobahn: installing {SUITE} for {python27}; this takes a minute, once")
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        if environment.exists():
            shutil.rmtree(environment)
    except OSError as error:
        raise Unavailable(f"the cache directory {cache_dir} cannot be written: {error.strerror}") from None
    with tempfile.TemporaryDirectory(prefix="brewos-relay-conformance-") as temporary:
        helper = Path(temporary) / "py3"
        steps: list[tuple[str, list[str | Path]]] = [
            ("a Python 3 environment", [sys.executable, "-m", "venv", helper]),
            (VIRTUALENV, [helper / "bin" / "python", "-m", "pip", "install", "-q", VIRTUALENV]),
            (
                "a Python 2.7 environment",
                [helper / "bin" / "python", "-m", "virtualenv", "-q", "-p", python27, environment],
            ),
            (SUITE, [python, "-W", "ignore", "-m", "pip", "install", "-q", SUITE]),
        ]
        for number, (what, command) in enumerate(steps, start=1):
            _say(f"  {number}/{len(steps)} {what}")
            _call(command, timeout_s=_INSTALL_S)
    _call([python, "-W", "ignore", "-c", "import autobahntestsuite.wstest"], timeout_s=_START_S)
    return python


# The run


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[str], timeout_s: float) -> Iterator[None]:
    """Kill a process that is still there after `timeout_s`, which ends whoever reads its output."""
    timer = threading.Timer(timeout_s, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _output_of(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _output_of(process).close()


@contextlib.contextmanager
def echo_server() -> Iterator[str]:
    """Run the echo server on a free port; yield its address, HOST:PORT. Raises RunFailed."""
    server = subprocess.Popen([sys.executable, HERE / "echo_server.py"], stdout=subprocess.PIPE, text=True)
    try:
        with _killed_after(server, _START_S):
            ready = _output_of(server).readline()
        address = re.fullmatch(r"listening on (\S+)\n", ready)
        if address is None:
            raise RunFailed("the echo server did not start; is the package installed?")
        yield address[1]
        if server.poll() is not None:
            raise RunFailed(f"the echo server ended during the run, with exit code {server.returncode}")
    finally:
        _stop(server)


class _Progress:
    """Shows how far the run is: a bar on a terminal, otherwise a line now and then."""

    def __init__(self) -> None:
        self._done = 0
        self._on_terminal = sys.stdout.isatty()

    def start_case(self, case_id: str) -> None:
        self._done += 1
        if self._on_terminal:
            width = 30
            bar = "#" * min(width, width * self._done // CORE_CASES)
            print(f"\r  [{bar:<{width}}] {self._done}/{CORE_CASES}  {case_id:<10}", end="", flush=True)
        elif self._done % _PROGRESS_EVERY == 0:
            _say(f"  {self._done}/{CORE_CASES} cases begun, at {case_id}")

    def end(self) -> None:
        if self._on_terminal and self._done:
            print(flush=True)


def run_cases(python: Path, *, address: str, report_dir: Path) -> None:
    """Run the suite's fuzzing client, which leaves its reports in `report_dir`. Raises RunFailed."""
    report_dir.mkdir(parents=True, exist_ok=True)
    (report_dir / "index.json").unlink(missing_ok=True)  # an earlier run's must not be taken for this one's
    specification = {
        "outdir": str(report_dir),
        "servers": [{"agent": AGENT, "url": f"ws://{address}"}],
        "cases": ["*"],
        "exclude-cases": list(EXCLUDED),
        "exclude-agent-cases": {},
    }
    spec_file = report_dir / "spec.json"
    spec_file.write_text(json.dumps(specification, indent=2) + "\n", encoding="utf-8")
    command = [
        python,
        "-u",
        "-W",
        "ignore",
        "-m",
        "autobahntestsuite.wstest",
        "-m",
        "fuzzingclient",
        "-s",
        spec_file,
    ]
    suite = subprocess.Popen(
        command,
        cwd=report_dir,
        env=_foreign_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    progress = _Progress()
    last_lines: list[str] = []
    try:
        with _killed_after(suite, _RUN_S):
            for line in _output_of(suite):
                case = re.match(r"Running test case ID (\S+) ", line)
                if case:
                    progress.start_case(case[1])
                else:
                    last_lines = [*last_lines[-7:], line.rstrip()[:300]]
            suite.wait()
    finally:
        progress.end()
        _stop(suite)
    if suite.returncode != 0 or not (report_dir / "index.json").exists():
        raise RunFailed("\n".join([f"the suite ended with exit code {suite.returncode}:", *last_lines]))


# The verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case: how the suite judges what came back, and how the connection was closed."""

    case_id: str
    behavior: str
    behavior_close: str
    report: Path

    @property
    def verdict(self) -> str:
        """`passed`, `non-strict`, `informational` or `failed`; a bad close fails the case as well."""
        if self.behavior_close not in ("OK", "INFORMATIONAL"):
            return "failed"
        known = {"OK": "passed", "NON-STRICT": "non-strict", "INFORMATIONAL": "informational"}
        return known.get(self.behavior, "failed")

    def explain(self) -> str:
        """Say what the suite found, in one line."""
        try:
            detail = json.loads(self.report.read_text(encoding="utf-8"))
            found = " ".join(f"{detail['result']} {detail['resultClose']}".split())
        except (OSError, ValueError, KeyError):
            found = "(its report cannot be read)"
        text = f"{self.case_id}: {self.behavior}, close {self.behavior_close}: {found}"
        return textwrap.shorten(text, 300, placeholder=" …")


def read_report(report_dir: Path) -> list[Case]:
    """Read the suite's verdicts, in the order of the case numbers."""
    index = json.loads((report_dir / "index.json").read_text(encoding="utf-8"))
    cases = [
        Case(
            case_id=case_id,
            behavior=entry["behavior"],
            behavior_close=entry["behaviorClose"],
            report=report_dir / entry["reportfile"],
        )
        for case_id, entry in index.get(AGENT, {}).items()
    ]
    return sorted(cases, key=lambda case: [int(part) for part in case.case_id.split(".")])


def judge(cases: Sequence[Case]) -> list[str]:
    """Say in what the relay does not conform; nothing if it does."""
    verdicts = [case.verdict for case in cases]
    problems: list[str] = []
    if len(cases) < CORE_CASES:
        problems.append(f"only {len(cases)} of {CORE_CASES} cases ran")
    if "failed" in verdicts:
        problems.append(f"{verdicts.count('failed')} cases failed")
    if verdicts.count("non-strict") > MOST_NON_STRICT:
        problems.append(f"{verdicts.count('non-strict')} cases non-strict, more than {MOST_NON_STRICT}")
    return problems


def print_summary(cases: Sequence[Case], *, took_s: float, report_dir: Path) -> None:
    """Print the counts, and the cases worth a look."""
    groups = {name: [case for case in cases if case.verdict == name] for name in VERDICTS}
    counts = ", ".join(f"{len(group)} {name}" for name, group in groups.items())
    _say(f"Autobahn: {len(cases)} cases in {took_s:.0f} s: {counts}")
    for name in ("failed", "non-strict"):
        for case in groups[name]:
            _say(f"  {name}  {case.explain()}")
    _say(f"Autobahn: reports are in {report_dir / 'index.html'}")


VERDICTS: Final = ("passed", "non-strict", "informational", "failed")


def _print_skipped(reason: str) -> None:
    line = "!" * 78
    print(
        f"\n{line}\n!!  SKIPPED: the Autobahn conformance cases did NOT run.\n{line}\n{reason}\n{line}\n",
        file=sys.stderr,
        flush=True,
    )


def main() -> int:
    """Run everything; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Run the Autobahn core cases against the relay's WebSocket layer."
    )
    parser.add_argument(
        "--report-dir", type=Path, help="where the suite's reports go (default: in the cache)"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE_DIR,
        help="where the suite is installed (default: %(default)s)",
    )
    arguments = parser.parse_args()
    cache_dir: Path = arguments.cache_dir.resolve()
    report_dir: Path = (arguments.report_dir or cache_dir / "reports").resolve()
    try:
        python = install_suite(cache_dir)
    except Unavailable as unavailable:
        _print_skipped(str(unavailable))
        return 0
    started_at = time.monotonic()
    try:
        with echo_server() as address:
            _say(f"Autobahn: {CORE_CASES} cases against ws://{address}")
            run_cases(python, address=address, report_dir=report_dir)
    except RunFailed as failure:
        print(f"Autobahn: the run broke off: {failure}", file=sys.stderr, flush=True)
        return 1
    cases = read_report(report_dir)
    print_summary(cases, took_s=time.monotonic() - started_at, report_dir=report_dir)
    problems = judge(cases)
    _say(f"Autobahn: NOT CONFORMING: {'; '.join(problems)}" if problems else "Autobahn: conforming")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
