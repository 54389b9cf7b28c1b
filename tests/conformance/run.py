"""Run the core cases of the Autobahn test suite against the relay's WebSocket layer; see README.md here."""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file is run as a script

from brewos_relay.version import BUILD
from conformance.report import CORE_CASES, differences, problems_of, read_report, summarize
from conformance.suite import Unavailable, foreign_environment, install_suite
from support.build import check_build

HERE: Final = Path(__file__).resolve().parent
DEFAULT_CACHE_DIR: Final = HERE.parents[1] / ".nox" / "autobahn"
AGENT: Final = "brewos-relay"
EXCLUDED: Final = ("9.*", "12.*", "13.*")  # speed and compression, which the relay does not support

_START_S: Final = 20.0
_STOP_S: Final = 5.0
_RUN_S: Final = 900.0
_PROGRESS_EVERY: Final = 25
_BAR_WIDTH: Final = 30


class RunBrokeOff(Exception):
    """The run of the suite did not finish; the text has the reason."""


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[str], timeout_s: float) -> Iterator[None]:
    """Kill a process that still runs after `timeout_s`, which also ends the reader of its output."""
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
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _output_of(process).close()


@contextlib.contextmanager
def echo_server() -> Iterator[str]:
    """Run the echo server on a free port; yield its address, HOST:PORT. Raises RunBrokeOff."""
    server = subprocess.Popen([sys.executable, HERE / "echo_server.py"], stdout=subprocess.PIPE, text=True)
    try:
        with _killed_after(server, _START_S):
            ready = _output_of(server).readline()
        address = re.fullmatch(r"listening on (\S+)\n", ready)
        if address is None:
            raise RunBrokeOff(
                f"the echo server did not start; is brewos-relay installed for {sys.executable}?"
            )
        yield address[1]
        if server.poll() is not None:
            raise RunBrokeOff(f"the echo server ended during the run, with exit code {server.returncode}")
    finally:
        _stop(server)


class _Progress:
    """Shows the progress: a bar on a terminal, otherwise occasional lines."""

    def __init__(self) -> None:
        self._begun = 0
        self._on_terminal = sys.stdout.isatty()

    def begin(self, case_id: str) -> None:
        self._begun += 1
        if self._on_terminal:
            bar = "#" * min(_BAR_WIDTH, _BAR_WIDTH * self._begun // CORE_CASES)
            print(f"\r  [{bar:<{_BAR_WIDTH}}] {self._begun}/{CORE_CASES} {case_id:<8}", end="", flush=True)
        elif self._begun % _PROGRESS_EVERY == 0:
            print(f"  {self._begun}/{CORE_CASES} at case {case_id}", flush=True)

    def end(self) -> None:
        if self._on_terminal and self._begun:
            print(flush=True)


def run_cases(python: Path, *, address: str, report_dir: Path) -> None:
    """Run the suite's fuzzing client, which leaves its reports in `report_dir`. Raises RunBrokeOff."""
    report_dir.mkdir(parents=True, exist_ok=True)
    index = report_dir / "index.json"
    index.unlink(missing_ok=True)  # remove the report of an earlier run
    spec = report_dir / "spec.json"
    specification = {
        "outdir": str(report_dir),
        "servers": [{"agent": AGENT, "url": f"ws://{address}"}],
        "cases": ["*"],
        "exclude-cases": EXCLUDED,
        "exclude-agent-cases": {},
    }
    spec.write_text(json.dumps(specification), encoding="utf-8")
    suite = subprocess.Popen(
        [
            str(python),
            "-u",
            "-W",
            "ignore",
            "-m",
            "autobahntestsuite.wstest",
            "-m",
            "fuzzingclient",
            "-s",
            str(spec),
        ],
        cwd=report_dir,
        env=foreign_environment(),
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
                    progress.begin(case[1])
                else:
                    last_lines = [*last_lines[-7:], line.rstrip()[:300]]
            suite.wait()
    finally:
        progress.end()
        _stop(suite)
    if suite.returncode != 0 or not index.exists():
        raise RunBrokeOff("\n".join([f"the suite ended with exit code {suite.returncode}:", *last_lines]))


def _print_skipped(reason: str) -> None:
    line = "!" * 78
    headline = "!!  SKIPPED: the Autobahn conformance cases did NOT run."
    print("", line, headline, line, reason, line, "", sep="\n", file=sys.stderr, flush=True)


def main() -> int:
    """Run everything; return the exit code."""
    parser = argparse.ArgumentParser(
        description="Run the Autobahn core cases against the relay's WebSocket layer."
    )
    parser.add_argument(
        "--report-dir", type=Path, help="where the reports go (default: reports, in the cache)"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        default=DEFAULT_CACHE_DIR,
        help="where the suite is installed, once (default: %(default)s)",
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="DIR",
        help="fail if the verdict on a case differs from that in these reports of another run",
    )
    arguments = parser.parse_args()
    if problem := check_build(os.environ.get("BREWOS_RELAY_BUILD_TESTS")):
        print(f"Autobahn: {problem}", file=sys.stderr)
        return 3
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
            print(f"Autobahn: {CORE_CASES} cases against ws://{address}, the {BUILD} build", flush=True)
            run_cases(python, address=address, report_dir=report_dir)
    except RunBrokeOff as broken:
        print(f"Autobahn: the run broke off: {broken}", file=sys.stderr)
        return 1
    cases = read_report(report_dir, agent=AGENT)
    problems = problems_of(cases)
    if arguments.like is not None:
        problems += differences(cases, read_report(arguments.like.resolve(), agent=AGENT))
    print(*summarize(cases), sep="\n")
    print(f"Reports, after {time.monotonic() - started_at:.0f} s: {report_dir / 'index.html'}")
    print(f"Autobahn: NOT GOOD ENOUGH: {'; '.join(problems)}" if problems else "Autobahn: good")
    return 1 if problems else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nAutobahn: interrupted")
