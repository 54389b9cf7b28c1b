"""Compare two installations of brewos-relay: pairs of measurements in turns, and the median of their ratios.

    python benchmarks/compare.py BASE_PYTHON NEW_PYTHON [--pairs 10] [--only NAME,NAME] [--secs 2]

Each Python has one of the installations. They may be the same Python, with other settings (`--new-setting`).

Exit codes: 0 all ratios are below the limit, 1 one is above or a measurement failed, 2 wrong usage, 3 could
not start.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from measuring import keep_fitting, raise_open_files
from options import add_conditions, names_of, read_quiet
from pinning import Pins, choose_pins, describe
from progress import describe_machine, say, warn
from results import Results, is_noisy
from rounds import Plan, measure_rounds
from saved import Saved, describe_medians, describe_rounds
from servers import HERE, BenchError, Fleet, Server, build_programs, register_fleet, run_quietly
from table import markdown, number
from workloads import GROUPS, WORKLOADS, Workload, choose

BASE, NEW = "base", "new"
DEFAULT = ("fanout-50x1-w1", "fanout-50x1-w4", "fanout-1x100-w1", "command-50x1-w1", "rate-2000x1")
"""The data path."""
LIMIT = 1.03
"""The largest ratio of the new figure to the base."""


def setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    known = [*GROUPS, *(workload.name for workload in WORKLOADS)]
    parser = argparse.ArgumentParser(description="Compare two installations of brewos-relay, in pairs.")
    parser.add_argument("base", metavar="BASE_PYTHON", help="a Python with the installation to compare with")
    parser.add_argument("new", metavar="NEW_PYTHON", help="a Python with the other installation")
    parser.add_argument("--pairs", type=int, default=10, help="default 10")
    parser.add_argument("--secs", type=float, default=2.0, help="length of one measurement (default 2)")
    parser.add_argument(
        "--only",
        type=partial(names_of, known=known),
        default=list(DEFAULT),
        metavar="NAME,…",
        help=f"groups or workloads (default {','.join(DEFAULT)})",
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"largest ratio (default {LIMIT})")
    parser.add_argument(
        "--interpreted",
        action="store_true",
        help="run both without compiled modules",
    )
    for side in (BASE, NEW):
        parser.add_argument(
            f"--{side}-setting",
            type=setting,
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=f"an environment variable of the {side} server (repeatable)",
        )
    add_conditions(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement to FILE")
    chosen = parser.parse_args(arguments)
    if chosen.pairs < 1 or chosen.secs <= 0:
        parser.error("--pairs and --secs must be above 0")
    chosen.quiet = read_quiet(parser, chosen)
    return chosen


def prepare(
    side: str, python: str, fleet: Fleet, settings: dict[str, str], *, interpreted: bool
) -> tuple[Server, str]:
    """Return the server of a side, and a description of its installation."""
    environ = {name: value for name, value in fleet.environ().items() if name != "PYTHONPATH"} | settings
    if interpreted:
        environ["BREWOS_RELAY_COMPILED"] = "0"
    relay = [str(Path(shutil.which(python) or python).absolute()), "-m", "brewos_relay"]
    version = run_quietly([*relay, "--version"], env=environ, cwd=fleet.folder)
    probe = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import progress; print(progress.describe_python())"
    )
    build = f"{version.strip()}, {run_quietly([relay[0], '-c', probe], env=environ).strip()}, in {python}"
    return register_fleet(fleet, relay, side, environ), build


def comparison_table(results: Results, workloads: Sequence[Workload], limit: float) -> tuple[str, int]:
    """Return the table, and the number of ratios above the limit."""
    rows, missed = [], 0
    for workload in workloads:
        for figure in workload.figures:
            ratios = results.ratios(workload.name, figure.key, NEW, BASE)
            if not ratios:
                continue
            kept = median(ratios) <= limit
            missed += not kept
            notes = [
                "ok" if kept else "**MISSED**",
                *(["noisy"] if is_noisy(ratios) else []),
                *(["disturbed"] if results.is_disturbed(workload.name, (BASE, NEW)) else []),
            ]
            rows.append(
                (
                    f"`{workload.name}`",
                    figure.title,
                    *(
                        number(results.figure(workload.name, figure.key, side), figure.unit)
                        for side in (BASE, NEW)
                    ),
                    f"{median(ratios):.3f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                    str(len(ratios)),
                    ", ".join(notes),
                )
            )
    header = ("Workload", "Figure", "Base", "New", "New ÷ base", "Range", "Pairs", f"Verdict (≤ {limit:g})")
    return markdown(header, rows), missed


def main() -> int:
    arguments = parse_arguments()
    if not sys.platform.startswith("linux"):
        warn("NOTHING MEASURED: the benchmarks need Linux (epoll and /proc)")
        return 3
    pins = Pins() if arguments.no_pin else choose_pins()
    chosen = choose(frozenset(arguments.only), quick=False)
    workloads, warnings = keep_fitting(chosen, raise_open_files())
    with tempfile.TemporaryDirectory(prefix="brewos-relay-compare-") as folder:
        fleet = Fleet(folder=Path(folder), devices=max((w.devices for w in workloads), default=1))
        try:
            build_programs()
            sides = [
                prepare(
                    side,
                    python,
                    fleet,
                    dict(settings),
                    interpreted=arguments.interpreted,
                )
                for side, python, settings in (
                    (BASE, arguments.base, arguments.base_setting),
                    (NEW, arguments.new, arguments.new_setting),
                )
            ]
        except BenchError as error:
            warn(f"NOTHING MEASURED: {error}")
            return 3
        (base, base_build), (new, new_build) = sides
        saved = Saved(
            caption=f"Each for {arguments.secs:g} s. Base: {base_build}. New: {new_build}. "
            f"{describe_machine()}, {describe(pins)}."
        )
        plan = Plan(
            turns={workload: [base, new] for workload in workloads},
            parts={},
            runs=arguments.pairs,
            secs=arguments.secs,
            pins=pins,
            quiet=arguments.quiet,
            json=arguments.json,
        )
        say(plan.describe())
        try:
            failures = measure_rounds(plan, saved)
        except KeyboardInterrupt:
            warnings.append("INTERRUPTED: the last round is incomplete")
            failures = 1
    table, missed = comparison_table(Results(saved.reports), workloads, arguments.limit)
    print(
        "\n\n".join(
            filter(None, [table, f"{describe_medians(saved)} {saved.caption}", describe_rounds(saved)])
        ),
        flush=True,
    )
    for warning in warnings:
        warn(warning)
    return 1 if missed or failures or not table else 0


if __name__ == "__main__":
    sys.exit(main())
