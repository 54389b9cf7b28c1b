"""Options that several scripts have."""

import argparse
from collections.abc import Sequence

from quiet import DISTURBED_PCT, REPEATS, Quiet


def names_of(text: str, known: Sequence[str]) -> list[str]:
    """Read a list of names. Raises ArgumentTypeError if one is unknown."""
    chosen = text.split(",")
    if unknown := set(chosen) - set(known):
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    return chosen


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """Add the options for processors and for disturbed measurements."""
    parser.add_argument(
        "--no-pin", action="store_true", help="let the system choose processors; see the README"
    )
    parser.add_argument(
        "--disturbed",
        type=float,
        default=DISTURBED_PCT,
        metavar="PERCENT",
        help="measure again when other programs used more than this share of one processor "
        f"(default {DISTURBED_PCT:g})",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        metavar="COUNT",
        help=f"how often a disturbed measurement is repeated (default {REPEATS})",
    )


def read_quiet(
    parser: argparse.ArgumentParser, chosen: argparse.Namespace, *, repeats: int = REPEATS
) -> Quiet:
    """Return when a measurement is repeated, from the options. `repeats` is the default."""
    repeats = repeats if chosen.repeats is None else chosen.repeats
    if repeats < 0 or chosen.disturbed < 0:
        parser.error("--repeats and --disturbed must not be below 0")
    return Quiet(limit_pct=chosen.disturbed, repeats=repeats)
