"""Fuzz the relay: its parts, its sockets, and its HTTP API.

    python tests/fuzz/run.py [--only frames,live] [--secs 20] [--seed 7]

`builds` needs a compiled build, and compares it with the interpreted one.

Each part takes `--secs`, except `floods`, which takes three times as long and a minute more, and `http`,
which acts as each user in turn for `--minutes`. Each run uses a new seed and prints it, so that findings can
be reproduced.

Exit codes: 0 no findings, 1 findings, 2 wrong usage, 3 could not start.
"""

import argparse
import importlib.util
import logging
import os
import secrets
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))  # this is run by its path

from brewos_relay.version import BUILD
from fuzz.mutation import Mutator
from fuzz.targets import TARGETS, Target
from support.build import check_build

PARTS: Final = (
    *[target.name for target in TARGETS],
    "builds",
    "live",
    "live-proxy",
    "live-tls",
    "floods",
    "http",
)
MOST_FINDINGS: Final = 5
SHOWN_BYTES: Final = 2000
SEEDS_AT_ONCE: Final = 100
"""How many seeds the builds are compared with in one pair of processes."""


def fuzz_target(target: Target, *, secs: float, seed: int, at_least: int = 1) -> tuple[int, list[str]]:
    """Try inputs for a while. Return how many were tried, and the findings without duplicates."""
    found: dict[str, str] = {}
    tried = 0
    end_s = time.monotonic() + secs
    while (time.monotonic() < end_s or tried < at_least) and len(found) < MOST_FINDINGS:
        mutator = Mutator(seed + tried)
        data = mutator.mutated(target.corpus)
        tried += 1
        try:
            target.check(data, mutator)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            how = f"--only {target.name} --seed {seed + tried - 1}"
            found.setdefault(
                place, f"{place}: {str(error)[:300]}\n  with {data[:SHOWN_BYTES]!r}\n  again by {how}"
            )
    return tried, list(found.values())


def fuzz_builds(*, secs: float, seed: int) -> tuple[int, list[str]]:
    """Compare this build with the interpreted one for a while. Return how many inputs, and findings."""
    from fuzz.outcomes import KINDS, differences

    if BUILD != "compiled":
        print("  left out: this build is interpreted")
        return 0, []
    found: list[str] = []
    tried = 0
    end_s = time.monotonic() + secs
    while time.monotonic() < end_s and len(found) < MOST_FINDINGS:
        found += differences(seed + tried, SEEDS_AT_ONCE)
        tried += SEEDS_AT_ONCE
    return tried * len(KINDS), found[:MOST_FINDINGS]


def fuzz_live(*, secs: float, seed: int, behind_proxy: bool, tls: bool) -> tuple[int, list[str]]:
    """Attack a server for a while. Return the number of attacks and the findings."""
    from fuzz.live import fuzz_server  # imported late: the parts above run without a server

    with tempfile.TemporaryDirectory(prefix="brewos-relay-fuzz-") as folder:

        async def attack() -> tuple[int, list[str]]:
            seen = await fuzz_server(Path(folder), secs=secs, seed=seed, behind_proxy=behind_proxy, tls=tls)
            answers = dict(sorted(seen.statuses.items()))
            print(f"  {seen.upgraded} upgraded, {seen.echoes} messages of bystanders, responses {answers}")
            if tls:
                print(f"  {seen.outlasted} connections of machines were held long enough")
            return seen.attacks, seen.problems

        return trio.run(attack)


def fuzz_floods(*, secs: float, seed: int) -> tuple[int, list[str]]:
    """Flood a server with valid requests. Return their number and the problems of a bystander."""
    from fuzz.floods import flood_server

    with tempfile.TemporaryDirectory(prefix="brewos-relay-floods-") as folder:

        async def flood() -> tuple[int, list[str]]:
            seen = await flood_server(Path(folder), secs=secs, seed=seed)
            print(*[f"  {line}" for line in seen.lines()], sep="\n")
            return seen.answers.total(), seen.problems

        return trio.run(flood)


def fuzz_http(arguments: argparse.Namespace) -> tuple[int, list[str]]:
    """Run schemathesis as each caller."""
    from fuzz import http_api

    failed = trio.run(http_api.main, arguments)
    return 0, [f"as {name}: see above" for name in failed]


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz the relay with random and invalid inputs.")
    parser.add_argument(
        "--only",
        type=lambda names: names.split(","),
        default=list(PARTS),
        metavar="NAME,…",
        help=f"parts, of {', '.join(PARTS)}",
    )
    parser.add_argument("--secs", type=float, default=20.0, help="the time for each part (default 20)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="start nothing after this many minutes (default 10); skipped parts are printed",
    )
    parser.add_argument("--seed", type=int, help="repeat a run by its seed (default: a new one)")
    http = parser.add_argument_group("http")
    http.add_argument(
        "--examples", type=int, default=25, help="requests of each kind, for each operation (default 25)"
    )
    http.add_argument(
        "--as", action="append", dest="askers", metavar="NAME", help="only as this caller (repeatable)"
    )
    chosen = parser.parse_args(given)
    if unknown := set(chosen.only) - set(PARTS):
        parser.error(f"--only: unknown: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    return chosen


def main() -> int:
    arguments = parse_arguments()
    if "http" in arguments.only and importlib.util.find_spec("schemathesis") is None:
        print("`http` needs schemathesis: use `nox -s fuzz`, or leave it out with --only", file=sys.stderr)
        return 3
    logging.basicConfig(level=logging.WARNING)
    if problem := check_build(os.environ.get("BREWOS_RELAY_BUILD_TESTS")):
        print(problem, file=sys.stderr)
        return 3
    if arguments.seed is None:
        arguments.seed = secrets.randbelow(2**31)
    seed = arguments.seed
    print(f"the {BUILD} build", flush=True)
    targets = {target.name: target for target in TARGETS}
    found_anything = []
    end_s = time.monotonic() + arguments.minutes * 60
    for part in arguments.only:
        arguments.minutes = (end_s - time.monotonic()) / 60
        if arguments.minutes <= 0:
            print(f"{part}: no time is left", flush=True)
            continue
        print(f"{part}: seed {seed}", flush=True)
        if part in targets:
            tried, found = fuzz_target(targets[part], secs=arguments.secs, seed=seed)
        elif part == "builds":
            tried, found = fuzz_builds(secs=arguments.secs, seed=seed)
        elif part == "floods":
            tried, found = fuzz_floods(secs=3 * arguments.secs, seed=seed)
        elif part == "http":
            tried, found = fuzz_http(arguments)
        else:
            tried, found = fuzz_live(
                secs=arguments.secs, seed=seed, behind_proxy=part == "live-proxy", tls=part == "live-tls"
            )
        print(*[f"  FOUND {finding}" for finding in found], sep="\n", end="\n" if found else "")
        print(f"  {f'{tried} inputs' if tried else 'done'}; {len(found) or 'nothing'} found", flush=True)
        if found:
            found_anything.append(part)
    print(f"found something in: {', '.join(found_anything)}" if found_anything else "found nothing")
    return 1 if found_anything else 0


if __name__ == "__main__":
    sys.exit(main())
