"""Measure brewos-relay beside the floor and a plain Node relay, and print one table.

    python benchmarks/run.py [--runs 5] [--workload NAME]... [--servers floor,relay,node]

Only Linux has what this reads (/proc) and uses (epoll). Exit codes: 0 all limits kept, 1 a limit missed or
a measurement failed, 2 wrong usage, 3 could not start.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from servers import (
    BUILD,
    BenchError,
    Fleet,
    MissingError,
    Server,
    build_programs,
    prepare_floor,
    prepare_node,
    prepare_relay,
    running,
)
from workloads import WORKLOADS, Workload, table

SERVERS = ("floor", "relay", "node")
SPARE_FILES = 200
"""Open files that a server needs besides its connections."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    rule = "!" * 100
    say(f"{rule}\n!! {text}\n{rule}")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [workload.name for workload in WORKLOADS]

    def server_names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(SERVERS):
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SERVERS)}"
            )
        return chosen

    parser = argparse.ArgumentParser(
        description="Measure brewos-relay beside the floor and a plain Node relay."
    )
    parser.add_argument("--runs", type=int, default=5, help="rounds; the table has their medians (default 5)")
    parser.add_argument(
        "--workload",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"again for more: {', '.join(names)}",
    )
    parser.add_argument(
        "--servers", type=server_names, default=list(SERVERS), help="default floor,relay,node"
    )
    parser.add_argument("--secs", type=float, default=5.0, help="length of one measurement (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement to FILE")
    parser.add_argument(
        "--relay-command",
        metavar="COMMAND",
        help="how to call brewos-relay, for example 'python3.13 -m brewos_relay'; the process that this "
        "starts must be the server itself, because its CPU time and memory are read (default: this Python)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.runs < 1 or chosen.secs <= 0:
        parser.error("--runs and --secs must be above 0")
    return chosen


def raise_open_files() -> int:
    """Raise the limit of open files as far as it goes, for us and all that we start; return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def choose_workloads(names: Sequence[str] | None, open_files: int) -> tuple[list[Workload], list[str]]:
    """Return the workloads that were asked for and fit into the limit of open files, and what to warn of."""
    chosen, warnings = [], []
    for workload in WORKLOADS:
        if names and workload.name not in names:
            continue
        needed = workload.connections + SPARE_FILES
        if needed <= open_files:
            chosen.append(workload)
        else:
            warnings.append(
                f"{workload.name} LEFT OUT: it needs {needed} open files, and ulimit -Hn is {open_files}"
            )
    return chosen, warnings


def prepare_servers(
    chosen: Sequence[str], fleet: Fleet, relay_command: str | None
) -> tuple[list[Server], list[str]]:
    """Return the servers that can be measured here, and what to warn of for those that cannot."""
    prepare: dict[str, Callable[[], Server]] = {
        "floor": lambda: prepare_floor(fleet),
        "relay": lambda: prepare_relay(fleet, command=relay_command),
        "node": lambda: prepare_node(fleet),
    }
    servers, warnings = [], []
    for name in SERVERS:
        if name not in chosen:
            continue
        try:
            servers.append(prepare[name]())
        except MissingError as error:
            warnings.append(f"{name} LEFT OUT: {error}")
    return servers, warnings


def measure(server: Server, workload: Workload, *, secs: float) -> dict[str, float]:
    """Run one workload against a fresh process of the server; return what `load` reports."""
    with running(server) as (port, pid):
        command = [str(BUILD / "load"), *workload.command, "--port", str(port), "--pid", str(pid)]
        secrets_and_length = ["--key", server.key, "--token", server.token, "--secs", str(secs), "--verbose"]
        done = subprocess.run([*command, *secrets_and_length], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{workload.name} on {server.name} failed:\n{done.stderr.strip()[:2000]}")
    report: dict[str, float] = json.loads(done.stdout)
    return report


def measure_rounds(
    servers: Sequence[Server], workloads: Sequence[Workload], *, runs: int, secs: float
) -> tuple[list[dict[str, object]], int]:
    """Measure everything `runs` times; return each report with its workload and server, and the failures.

    The servers take turns within a workload, so all of them are measured in the same minute, and another one
    begins in each round.
    """
    reports: list[dict[str, object]] = []
    failures = 0
    for run in range(runs):
        for workload in workloads:
            for place in range(len(servers)):
                server = servers[(run + place) % len(servers)]
                label = f"[{run + 1}/{runs}] {workload.name:<18} {server.name:<6}"
                try:
                    report = measure(server, workload, secs=secs)
                except BenchError as error:
                    failures += 1
                    warn(f"{label} {error}")
                    continue
                say(f"{label} {report[workload.figure]:8.2f} {workload.unit}")
                reports.append({"run": run, "workload": workload.name, "server": server.name} | report)
    return reports, failures


def collect(reports: Sequence[dict[str, object]]) -> dict[str, dict[str, list[float]]]:
    figure_of = {workload.name: workload.figure for workload in WORKLOADS}
    samples: dict[str, dict[str, list[float]]] = {}
    for report in reports:
        workload, server = str(report["workload"]), str(report["server"])
        value = report[figure_of[workload]]
        assert isinstance(value, int | float)
        samples.setdefault(workload, {}).setdefault(server, []).append(float(value))
    return samples


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


def main() -> int:
    arguments = parse_arguments()
    if not sys.platform.startswith("linux"):
        warn("NOTHING MEASURED: the benchmarks need Linux (epoll and /proc)")
        return 3
    try:
        build_programs()
    except BenchError as error:
        warn(f"NOTHING MEASURED: {error}")
        return 3

    machine = describe_machine()
    workloads, warnings = choose_workloads(arguments.workload, raise_open_files())
    with tempfile.TemporaryDirectory(prefix="brewos-relay-bench-") as folder:
        fleet = Fleet(folder=Path(folder), devices=max(workload.devices for workload in WORKLOADS))
        try:
            servers, missing = prepare_servers(arguments.servers, fleet, arguments.relay_command)
        except BenchError as error:
            warn(f"NOTHING MEASURED: {error}")
            return 3
        warnings += missing
        for text in warnings:
            warn(text)
        if not servers or not workloads:
            warn("NOTHING MEASURED: nothing is left to be measured")
            return 3
        reports, failures = measure_rounds(servers, workloads, runs=arguments.runs, secs=arguments.secs)

    if arguments.json:
        arguments.json.write_text(
            json.dumps({"machine": machine, "reports": reports}, indent=1), encoding="utf-8"
        )
    text, missed = table(collect(reports))
    print(text)
    print(f"\nMedians of {arguments.runs}. {machine}.", flush=True)
    for warning in warnings:
        warn(warning)
    if failures:
        warn(f"{failures} measurements FAILED, and are in none of the medians")
    return 1 if missed or failures else 0


if __name__ == "__main__":
    sys.exit(main())
