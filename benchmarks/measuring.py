"""Run a workload against a server."""

import json
import resource
import subprocess
import sys
from collections.abc import Sequence

from pinning import Pins, pinned_to
from quiet import Quiet, Report
from servers import BUILD, HERE, BenchError, Server, running
from workloads import Workload

SPARE_FILES = 200
"""Open files that a server needs besides its connections."""
AROUND_S = {"fanout": 2.5, "command": 2.5, "rate": 3.0, "fleet": 3.0, "idle": 4.0, "storm": 4.5}
"""What a measurement takes besides its length, by its mode: starting, connecting, warming up."""


def duration_s(workload: Workload, secs: float) -> float:
    """Return about how long a measurement takes."""
    return secs + AROUND_S[workload.mode]


def measure(server: Server, workload: Workload, *, secs: float, pins: Pins) -> Report:
    """Run one workload against a fresh process of the server; return what `load` reports."""
    with running(server, tls=workload.tls, cpu=pins.server) as (port, pid):
        return run_load(workload, server, port=port, pid=pid, secs=secs, pins=pins)


def run_load(workload: Workload, server: Server, *, port: int, pid: int, secs: float, pins: Pins) -> Report:
    """Run one workload against a server that runs.

    Raises BenchError if a connection fails or no message arrives.
    """
    load = [sys.executable, str(HERE / "tls_load.py")] if workload.tls else [str(BUILD / "load")]
    command = [*load, *workload.command, "--port", str(port), "--pid", str(pid)]
    secrets_and_length = ["--key", server.key, "--token", server.token, "--secs", str(secs), "--verbose"]
    done = subprocess.run(
        [*command, *secrets_and_length],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=pinned_to(pins.generator),
    )
    if done.returncode:
        raise BenchError(f"{workload.name} on {server.name} failed:\n{done.stderr.strip()[:2000]}")
    report: Report = json.loads(done.stdout)
    if report.get("deliveries") == 0:
        raise BenchError(f"{workload.name} on {server.name}: no message arrived")
    return report


def measure_quietly(
    server: Server, workload: Workload, *, secs: float, pins: Pins, quiet: Quiet, label: str
) -> Report:
    """Do the same, again if other programs disturb. They do not change memory."""

    def once() -> Report:
        return measure(server, workload, secs=secs, pins=pins)

    return quiet.measure(once, label=label) if workload.is_timed else once()


def raise_open_files() -> int:
    """Raise the limit of open files as far as it goes, for us and all that we start; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def keep_fitting(workloads: Sequence[Workload], open_files: int) -> tuple[list[Workload], list[str]]:
    """Return the workloads that fit into the limit of open files, and warnings."""
    fitting = [w for w in workloads if w.connections + SPARE_FILES <= open_files]
    return fitting, [
        f"{w.name} LEFT OUT: {w.connections + SPARE_FILES} open files are needed, ulimit -Hn is {open_files}"
        for w in workloads
        if w not in fitting
    ]
