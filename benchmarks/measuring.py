"""Run a workload against a server."""

import json
import subprocess
import sys

from pinning import Pins, pinned_to
from quiet import Quiet, Report
from servers import BUILD, HERE, BenchError, Server, running
from workloads import Workload

AROUND_S = {"idle": 5.0, "storm": 5.0}
OTHERWISE_AROUND_S = 3.5
"""What a measurement takes besides its length, by its mode: starting, connecting, warming up."""


def duration_s(workload: Workload, secs: float) -> float:
    """Return about how long a measurement takes."""
    return secs + AROUND_S.get(workload.mode, OTHERWISE_AROUND_S)


def measure(server: Server, workload: Workload, *, secs: float, pins: Pins) -> Report:
    """Run one workload against a fresh process of the server; return what `load` reports."""
    with running(server, tls=workload.tls, cpu=pins.server) as (port, pid):
        return run_load(workload, server, port=port, pid=pid, secs=secs, pins=pins)


def run_load(workload: Workload, server: Server, *, port: int, pid: int, secs: float, pins: Pins) -> Report:
    """Run one workload against a server that runs. Raises BenchError if a connection fails."""
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
    return report


def measure_quietly(
    server: Server, workload: Workload, *, secs: float, pins: Pins, quiet: Quiet, label: str
) -> Report:
    """Do the same, again if other programs disturb. They do not change memory."""

    def once() -> Report:
        return measure(server, workload, secs=secs, pins=pins)

    return quiet.measure(once, label=label) if workload.is_timed else once()
