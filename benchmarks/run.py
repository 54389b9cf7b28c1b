"""Measure brewos-relay beside the floor and other relays; print one table and draw one chart.

    python benchmarks/run.py [--quick] [--only NAME,NAME] [--runs 5] [--servers floor,relay]
    python benchmarks/run.py --targets [--json FILE]     # the tables of the compiled build's targets
    python benchmarks/run.py --from FILE FILE            # the tables of earlier measurements

Only Linux has what this reads (/proc) and uses (epoll). Exit codes: 0 all limits kept, 1 a limit missed or
a measurement failed, 2 wrong usage, 3 could not start.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import relay_parts
from chart import chart
from measuring import keep_fitting, raise_open_files
from options import add_conditions, names_of, read_quiet
from parts import count_missed_parts, parts_table
from pinning import Pins, choose_pins, describe
from progress import describe_machine, describe_python, is_optimised, say, warn
from quiet import REPEATS, Report
from results import Results, count_missed, count_missed_targets
from rounds import Plan, measure_rounds
from saved import Saved, describe_medians, describe_rounds, read_saved
from servers import (
    BUILD,
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
)
from table import growth_sentences, table
from targets import peers_table, targets_table
from workloads import GROUPS, SERVERS, TARGETS, WORKLOADS, choose

import cluster

RUNS, QUICK_RUNS = 5, 1
SECS, QUICK_SECS = 2.0, 1.0
DEVICES = max(*(workload.devices for workload in WORKLOADS), cluster.RECLAIMED + cluster.LOCAL_DEVICES)
PARTS = (*cluster.PARTS, *relay_parts.PARTS)
FIGURES = (*cluster.FIGURES, *relay_parts.FIGURES)
TARGET_PARTS = ("tls", "history", "workers")
"""Parts that belong to the targets."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    names = [*GROUPS, cluster.GROUP, *PARTS, *(workload.name for workload in WORKLOADS)]
    parser = argparse.ArgumentParser(description="Measure brewos-relay beside the floor and other relays.")
    parser.add_argument(
        "--quick", action="store_true", help="one short round of some workloads: a look, no figures"
    )
    parser.add_argument(
        "--only",
        type=partial(names_of, known=names),
        action="extend",
        metavar="NAME,…",
        help=f"groups or workloads; groups are {', '.join(GROUPS)}, and {cluster.GROUP} with its parts "
        f"{', '.join(cluster.PARTS)}; further parts are {', '.join(relay_parts.PARTS)}",
    )
    parser.add_argument(
        "--targets",
        action="store_true",
        help="measure what the compiled build has targets for, and print their tables",
    )
    parser.add_argument(
        "--servers",
        type=partial(names_of, known=SERVERS),
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
    add_conditions(parser)
    parser.add_argument(
        "--devices",
        type=int,
        metavar="COUNT",
        help=f"devices of {cluster.GROUP} and of the history, instead of thousands",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write every single measurement to FILE, after each of them",
    )
    parser.add_argument(
        "--from",
        type=Path,
        dest="from_files",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="measure nothing; make the tables and the chart of the FILEs that --json wrote, together",
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
    chosen.quiet = read_quiet(parser, chosen, repeats=0 if chosen.quick else REPEATS)
    return chosen


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


def show(saved: Saved, chart_file: Path, *, only_targets: bool) -> int:
    """Print the tables, draw the chart, and put the tables beside it; return how many limits were missed."""
    results = Results(saved.reports)
    targets = targets_table(results, saved.parts)
    texts = [targets, peers_table(results)] if only_targets else []
    if not only_targets:
        texts += [table(results), *growth_sentences(results)] if saved.reports else []
        texts.append(targets)
    # The table of the targets has rows for TLS.
    figures = [figure for figure in FIGURES if not (targets and figure.part == "tls")]
    caption = f"{describe_medians(saved)} {saved.caption}"
    texts += [parts_table(figures, saved.parts), caption, describe_rounds(saved)]
    text = "\n\n".join(filter(None, texts)) + "\n"
    print(text, end="", flush=True)
    chart_file.parent.mkdir(parents=True, exist_ok=True)
    chart_file.with_suffix(".md").write_text(text, encoding="utf-8")
    if saved.reports:
        chart_file.write_text(chart(results, caption=caption), encoding="utf-8")
        say(f"The chart is in {chart_file}.")
    say(f"The tables are in {chart_file.with_suffix('.md')}.")
    missed = count_missed_targets(results) + count_missed_parts(FIGURES, saved.parts)
    return missed if only_targets else missed + count_missed(results)


def choose_parts(only: Sequence[str] | None, *, only_targets: bool = False) -> list[str]:
    """Return the parts that were chosen: by default all, or all that belong to the targets."""
    return [
        part
        for part in PARTS
        if (part in TARGET_PARTS or not only_targets)
        and (not only or part in only or (part in cluster.PARTS and cluster.GROUP in only))
    ]


def _measure_build(measure: Callable[[Any], Report], setting: Any) -> Report:
    """Measure a part, and name the build that was measured."""
    return measure(setting) | {"build": setting.server.name}


def prepare_parts(
    chosen: Sequence[str], servers: Mapping[str, Server], arguments: argparse.Namespace, pins: Pins
) -> tuple[dict[str, Callable[[], Report]], list[str]]:
    """Return the functions that measure the parts, and warnings for parts that are left out."""
    builds = {name: servers[name] for name in relay_parts.BUILDS if name in servers}
    if not builds:
        return {}, []
    alone = relay_parts.Setting(servers=builds, secs=arguments.secs, pins=pins)
    if arguments.devices is not None:
        alone = replace(alone, devices=arguments.devices)
    parts: dict[str, Callable[[], Report]] = {}
    warnings = []
    for name, measure in relay_parts.MEASURE.items():
        if name in chosen and name == "tls" and arguments.relay_command:
            warnings.append("tls LEFT OUT: it measures this Python, and not --relay-command")
        elif name in chosen:
            parts[name] = partial(_measure_build, measure, alone)
    if not set(cluster.PARTS) & set(chosen):
        return parts, warnings
    try:
        program = cluster.redis_program()
    except BenchError as error:
        return parts, [*warnings, f"{cluster.GROUP} LEFT OUT: {error}"]
    server = alone.server if arguments.targets else servers.get("relay", alone.server)
    setting = cluster.Setting(server=server, redis=program, secs=arguments.secs, pins=pins)
    if arguments.devices is not None:
        setting = replace(setting, devices=arguments.devices, connecting=arguments.devices)
    for name in cluster.PARTS:
        if name in chosen:
            parts[name] = partial(_measure_build, cluster.MEASURE[name], setting)
    return parts, warnings


def measure_all(arguments: argparse.Namespace) -> int:
    """Run the chosen measurements, print the results, and return the exit code."""
    try:
        build_programs()
    except BenchError as error:
        warn(f"NOTHING MEASURED: {error}")
        return 3
    pins = Pins() if arguments.no_pin else choose_pins()
    asked = choose(frozenset(arguments.only or ()), quick=arguments.quick)
    if arguments.targets:
        asked = [workload for workload in asked if workload.name in TARGETS]
    workloads, warnings = keep_fitting(asked, raise_open_files())
    if pins.server is None and not arguments.no_pin:
        warnings.append("there is ONE PROCESSOR for server and generator: ratios say less than they should")
    if arguments.targets and not is_optimised():
        warnings.append(f"{describe_python()}: the targets are for an optimised build")
    machine = f"{describe_machine()}, {describe_python()}, {describe(pins)}"
    if arguments.relay_command:
        machine += f", brewos-relay as {arguments.relay_command}"
    saved = Saved(caption=f"Each for {arguments.secs:g} s. {machine}.")
    failures, interrupted = 0, False
    with tempfile.TemporaryDirectory(prefix="brewos-relay-bench-") as folder:
        fleet = Fleet(folder=Path(folder), devices=DEVICES)
        try:
            servers, missing = prepare_servers(arguments.servers, fleet, arguments.relay_command)
        except BenchError as error:
            warn(f"NOTHING MEASURED: {error}")
            return 3
        chosen = choose_parts(arguments.only, only_targets=arguments.targets)
        parts, left_out = prepare_parts(chosen, servers, arguments, pins)
        warnings += missing + left_out
        for text in warnings:
            warn(text)
        turns = {w: [servers[name] for name in w.servers if name in servers] for w in workloads}
        plan = Plan(
            turns={workload: there for workload, there in turns.items() if there},
            parts=parts,
            runs=arguments.runs,
            secs=arguments.secs,
            pins=pins,
            quiet=arguments.quiet,
            json=arguments.json,
        )
        if plan.turns or plan.parts:
            say(plan.describe())
        try:
            failures = measure_rounds(plan, saved) if plan.turns or plan.parts else 0
        except KeyboardInterrupt:
            interrupted = True
            warnings.append("INTERRUPTED: the last round is incomplete")
    if not saved.reports and not saved.parts:
        for warning in warnings:
            warn(warning)
        warn("NOTHING MEASURED: nothing is left to be measured")
        return 1 if failures else 3

    missed = show(saved, arguments.chart, only_targets=arguments.targets)
    for warning in warnings:
        warn(warning)
    if failures:
        warn(f"{failures} measurements FAILED, and are in none of the medians")
    return 1 if missed or failures or interrupted else 0


def main() -> int:
    arguments = parse_arguments()
    if arguments.from_files:
        try:
            saved = read_saved(arguments.from_files)
        except (OSError, ValueError) as error:
            warn(f"NOTHING SHOWN: {error}")
            return 3
        return 1 if show(saved, arguments.chart, only_targets=arguments.targets) else 0
    if not sys.platform.startswith("linux"):
        warn("NOTHING MEASURED: the benchmarks need Linux (epoll and /proc)")
        return 3
    return measure_all(arguments)


if __name__ == "__main__":
    sys.exit(main())
