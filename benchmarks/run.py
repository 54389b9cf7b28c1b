"""Measure brewos-relay beside the floor and other relays; print one table and draw one chart.

    python benchmarks/run.py [--quick] [--only NAME,NAME] [--runs 5] [--servers floor,relay]

Only Linux has what this reads (/proc) and uses (epoll). Exit codes: 0 all limits kept, 1 a limit missed or
a measurement failed, 2 wrong usage, 3 could not start.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from chart import chart
from pinning import Pins, choose_pins, describe, pinned_to
from progress import describe_machine, say, warn
from results import Results, count_missed
from servers import (
    BUILD,
    HERE,
    BenchError,
    Fleet,
    MissingError,
    Server,
    build_programs,
    prepare_floor,
    prepare_go,
    prepare_node,
    prepare_python_relay,
    prepare_relay,
    running,
)
from table import growth_sentences, table, targets_table
from workloads import GROUPS, SERVERS, WORKLOADS, Workload, choose

import cluster
from cluster import Setting, cluster_table, count_missed_cluster, redis_program

SPARE_FILES = 200
"""Open files that a server needs besides its connections."""
RUNS, QUICK_RUNS = 5, 1
SECS, QUICK_SECS = 2.0, 1.0
DEVICES = max(*(workload.devices for workload in WORKLOADS), cluster.RECLAIMED + cluster.LOCAL_DEVICES)
AROUND_S = 3.5
"""What a measurement takes besides its length: starting, connecting, warming up."""


def _names(text: str, known: Sequence[str]) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - set(known):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    return chosen


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [*GROUPS, cluster.GROUP, *cluster.PARTS, *(workload.name for workload in WORKLOADS)]
    parser = argparse.ArgumentParser(description="Measure brewos-relay beside the floor and other relays.")
    parser.add_argument(
        "--quick", action="store_true", help="one short round of some workloads: a look, no figures"
    )
    parser.add_argument(
        "--only",
        type=partial(_names, known=names),
        action="extend",
        metavar="NAME,…",
        help=f"groups or workloads; groups are {', '.join(GROUPS)}, and {cluster.GROUP} with its parts "
        f"{', '.join(cluster.PARTS)}",
    )
    parser.add_argument(
        "--servers",
        type=partial(_names, known=SERVERS),
        default=list(SERVERS),
        metavar="NAME,…",
        help=f"default {','.join(SERVERS)}",
    )
    parser.add_argument(
        "--runs", type=int, help=f"rounds; the table has their medians (default {RUNS}, quick {QUICK_RUNS})"
    )
    parser.add_argument(
        "--secs", type=float, help=f"length of one measurement (default {SECS:g}, quick {QUICK_SECS:g})"
    )
    parser.add_argument(
        "--no-pin", action="store_true", help="let the system choose processors; see the README"
    )
    parser.add_argument(
        "--devices",
        type=int,
        metavar="COUNT",
        help=f"devices of {cluster.GROUP} that are claimed again or connect, instead of thousands",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement to FILE")
    parser.add_argument(
        "--from",
        type=Path,
        dest="from_file",
        metavar="FILE",
        help="measure nothing; make the table and the chart of a FILE that --json wrote",
    )
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE",
        default=BUILD / "bench.svg",
        help="where the chart goes (default benchmarks/build/bench.svg; the table is put beside it, .md)",
    )
    parser.add_argument(
        "--relay-command",
        metavar="COMMAND",
        help="how to call brewos-relay, for example 'python3.13 -m brewos_relay'; the process that this "
        "starts must be the server itself, because its CPU time and memory are read (default: this Python)",
    )
    chosen = parser.parse_args(arguments)
    chosen.runs = (QUICK_RUNS if chosen.quick else RUNS) if chosen.runs is None else chosen.runs
    chosen.secs = (QUICK_SECS if chosen.quick else SECS) if chosen.secs is None else chosen.secs
    if chosen.devices is not None and not 0 < chosen.devices <= cluster.RECLAIMED:
        parser.error(f"--devices must be between 1 and {cluster.RECLAIMED}")
    if chosen.runs < 1 or chosen.secs <= 0:
        parser.error("--runs and --secs must be above 0")
    return chosen


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


def prepare_servers(
    chosen: Sequence[str], fleet: Fleet, relay_command: str | None
) -> tuple[dict[str, Server], list[str]]:
    """Return the servers that can be measured here, and warnings for the others."""
    prepare: dict[str, Callable[[], Server]] = {
        "floor": lambda: prepare_floor(fleet),
        "relay": lambda: prepare_relay(fleet, command=relay_command),
        "compiled": lambda: prepare_relay(fleet, command=relay_command, name="compiled"),
        "node": lambda: prepare_node(fleet),
        "go": lambda: prepare_go(fleet),
        "picows": lambda: prepare_python_relay(fleet, "picows"),
        "websockets": lambda: prepare_python_relay(fleet, "websockets"),
        "websockets-trio": lambda: prepare_python_relay(fleet, "websockets-trio"),
    }
    servers, warnings = {}, []
    for name in SERVERS:
        if name not in chosen:
            continue
        try:
            servers[name] = prepare[name]()
        except MissingError as error:
            warnings.append(f"{name} LEFT OUT: {error}")
    return servers, warnings


def measure(server: Server, workload: Workload, *, secs: float, pins: Pins) -> dict[str, float]:
    """Run one workload against a fresh process of the server; return what `load` reports."""
    load = [sys.executable, str(HERE / "tls_load.py")] if workload.tls else [str(BUILD / "load")]
    with running(server, tls=workload.tls, cpu=pins.server) as (port, pid):
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
    report: dict[str, float] = json.loads(done.stdout)
    return report


def measure_rounds(
    servers: dict[str, Server], workloads: Sequence[Workload], *, runs: int, secs: float, pins: Pins
) -> tuple[list[dict[str, object]], int]:
    """Measure everything `runs` times; return each report with its workload and server, and the failures.

    The servers take turns within a workload, so all of them are measured in the same minute, and another one
    begins in each round.
    """
    reports: list[dict[str, object]] = []
    failures = done = 0
    turns = {w.name: [servers[name] for name in w.servers if name in servers] for w in workloads}
    total = runs * sum(map(len, turns.values()))
    say(f"{total} measurements; about {total * (secs + AROUND_S) / 60:.0f} min; {describe(pins)}")
    began_s = time.monotonic()
    for run in range(runs):
        for workload in workloads:
            taking_part = turns[workload.name]
            for place in range(len(taking_part)):
                server = taking_part[(run + place) % len(taking_part)]
                left_min = (time.monotonic() - began_s) / done * (total - done) / 60 if done else None
                left = f"{left_min:3.0f} min left" if left_min is not None else " " * 12
                done += 1
                label = f"[{done}/{total} {left}] {workload.name:<18} {server.name:<10}"
                try:
                    report = measure(server, workload, secs=secs, pins=pins)
                except BenchError as error:
                    failures += 1
                    warn(f"{label} {error}")
                    continue
                figures = (
                    f"{figure.title} {report[figure.key]:.2f} {figure.unit}" for figure in workload.figures
                )
                say(f"{label} {', '.join(figures)}")
                reports.append({"run": run, "workload": workload.name, "server": server.name} | report)
    return reports, failures


def show(
    reports: Sequence[dict[str, object]],
    of_cluster: Sequence[dict[str, object]],
    caption: str,
    chart_file: Path,
) -> int:
    """Print the tables, draw the chart, and put the tables beside it; return how many limits were missed."""
    results = Results(reports)
    parts = [table(results), "", *growth_sentences(results), ""] if reports else []
    targets = targets_table(results)
    parts += [targets, ""] if targets else []
    parts += [cluster_table(of_cluster), ""] if of_cluster else []
    text = "\n".join([*parts, caption, ""])
    print(text, flush=True)
    chart_file.parent.mkdir(parents=True, exist_ok=True)
    chart_file.with_suffix(".md").write_text(text, encoding="utf-8")
    if reports:
        chart_file.write_text(chart(results, caption=caption), encoding="utf-8")
        say(f"The chart is in {chart_file}.")
    say(f"The tables are in {chart_file.with_suffix('.md')}.")
    return count_missed(results) + count_missed_cluster(of_cluster)


def choose_parts(only: Sequence[str] | None) -> list[str]:
    """Return the parts of the cluster's figures that were chosen: all with its group, and by default."""
    return [part for part in cluster.PARTS if not only or cluster.GROUP in only or part in only]


def measure_cluster(
    parts: Sequence[str], server: Server, arguments: argparse.Namespace, pins: Pins
) -> tuple[list[dict[str, object]], int, list[str]]:
    """Measure several instances; return the reports, the failures, and warnings."""
    try:
        program = redis_program()
    except BenchError as error:
        return [], 0, [f"{cluster.GROUP} LEFT OUT: {error}"]
    setting = Setting(server=server, redis=program, secs=arguments.secs, pins=pins)
    if arguments.devices is not None:
        setting = replace(setting, devices=arguments.devices, connecting=arguments.devices)
    reports, failures = cluster.measure_rounds(setting, parts, arguments.runs)
    return reports, failures, []


def measure_all(arguments: argparse.Namespace) -> int:
    """Run the chosen measurements, print the results, and return the exit code."""
    try:
        build_programs()
    except BenchError as error:
        warn(f"NOTHING MEASURED: {error}")
        return 3
    pins = Pins() if arguments.no_pin else choose_pins()
    machine = f"{describe_machine()}, {describe(pins)}"
    parts = choose_parts(arguments.only)
    asked = choose(frozenset(arguments.only or ()), quick=arguments.quick)
    workloads, warnings = keep_fitting(asked, raise_open_files())
    if pins.server is None and not arguments.no_pin:
        warnings.append("there is ONE PROCESSOR for server and generator: ratios say less than they should")
    reports: list[dict[str, object]] = []
    of_cluster: list[dict[str, object]] = []
    failures = 0
    with tempfile.TemporaryDirectory(prefix="brewos-relay-bench-") as folder:
        fleet = Fleet(folder=Path(folder), devices=DEVICES)
        try:
            servers, missing = prepare_servers(arguments.servers, fleet, arguments.relay_command)
        except BenchError as error:
            warn(f"NOTHING MEASURED: {error}")
            return 3
        warnings += missing
        for text in warnings:
            warn(text)
        if any(set(w.servers) & set(servers) for w in workloads):
            reports, failures = measure_rounds(
                servers, workloads, runs=arguments.runs, secs=arguments.secs, pins=pins
            )
        if parts and "relay" in servers:
            of_cluster, failed, left_out = measure_cluster(parts, servers["relay"], arguments, pins)
            failures += failed
            warnings += left_out
    if not reports and not of_cluster:
        for warning in warnings:
            warn(warning)
        warn("NOTHING MEASURED: nothing is left to be measured")
        return 1 if failures else 3

    caption = f"Medians of {arguments.runs}. {machine}."
    if arguments.json:
        content = {"caption": caption, "reports": reports, "cluster": of_cluster}
        arguments.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    missed = show(reports, of_cluster, caption, arguments.chart)
    for warning in warnings:
        warn(warning)
    if failures:
        warn(f"{failures} measurements FAILED, and are in none of the medians")
    return 1 if missed or failures else 0


def main() -> int:
    arguments = parse_arguments()
    if arguments.from_file is not None:
        try:
            saved = json.loads(arguments.from_file.read_text(encoding="utf-8"))
            missed = show(saved["reports"], saved.get("cluster", []), saved["caption"], arguments.chart)
        except (OSError, ValueError, KeyError) as error:
            warn(f"NOTHING SHOWN: {arguments.from_file} cannot be read ({error!r})")
            return 3
        return 1 if missed else 0
    if not sys.platform.startswith("linux"):
        warn("NOTHING MEASURED: the benchmarks need Linux (epoll and /proc)")
        return 3
    return measure_all(arguments)


if __name__ == "__main__":
    sys.exit(main())
