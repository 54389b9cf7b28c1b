"""The table of a benchmark, in Markdown."""

from collections.abc import Iterable, Iterator, Sequence

from results import Results, is_noisy, judge, judge_growth
from workloads import GROWTHS, SERVERS, WORKLOADS, Figure, Growth, Workload

NOTHING = "-"
OTHERS = ("floor", "node", "picows")
"""The servers that the relay is divided by."""
LIBRARIES = frozenset({"picows", "websockets", "websockets-trio"})
HEADER = (
    "Workload",
    "Figure",
    "Limit",
    *(server if server in LIBRARIES else server.capitalize() for server in SERVERS),
    *(f"Relay ÷ {server}" for server in OTHERS),
    "Verdict",
)


def number(value: float | None, unit: str = "") -> str:
    """Write a figure with as many digits as mean something."""
    if value is None:
        return NOTHING
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f} {unit}".rstrip()


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table; nothing if it has no rows."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if len(lines) > 2 else ""


def _verdict(*, kept: bool | None, noisy: bool) -> str:
    if kept is None:
        return NOTHING
    return ("ok" if kept else "**MISSED**") + (", noisy" if noisy else "")


def _row(results: Results, workload: Workload, figure: Figure) -> tuple[str, ...]:
    limit, verdict = NOTHING, NOTHING
    if workload.limit is not None and figure is workload.figures[0]:
        ratios = results.ratios(workload.name, figure.key, "relay", "floor")
        noisy = workload.limits_ratio and is_noisy(ratios)
        verdict = _verdict(kept=judge(results, workload), noisy=noisy)
        limit = (
            f"{workload.limit:.1f} x floor" if workload.limits_ratio else number(workload.limit, figure.unit)
        )
    # What the floor takes for a connection is next to nothing: a multiple of it says nothing.
    compared = OTHERS if workload.group not in {"memory", "storm"} else OTHERS[1:]
    return (
        f"`{workload.name}`",
        figure.title,
        limit,
        *(number(results.figure(workload.name, figure.key, server), figure.unit) for server in SERVERS),
        *(
            number(results.ratio(workload.name, figure.key, "relay", other)) if other in compared else NOTHING
            for other in OTHERS
        ),
        verdict,
    )


def _growth_row(results: Results, growth: Growth) -> tuple[str, ...]:
    def per_doubling(server: str) -> str:
        return number(results.per_doubling(growth, server), "x")

    return (
        growth.title,
        "per doubling",
        f"{growth.limit:.1f} x",
        *map(per_doubling, SERVERS),
        *[NOTHING for _ in OTHERS],
        _verdict(kept=judge_growth(results, growth), noisy=False),
    )


def _rows(results: Results) -> Iterator[tuple[str, ...]]:
    growths = {growth.group: growth for growth in GROWTHS}
    measured = [workload for workload in WORKLOADS if results.was_measured(workload)]
    for place, workload in enumerate(measured):
        for figure in workload.figures:
            yield _row(results, workload, figure)
        is_last = place + 1 == len(measured) or measured[place + 1].group != workload.group
        growth = growths.get(workload.group)
        if is_last and growth is not None and results.exponents(growth, "relay"):
            yield _growth_row(results, growth)


def table(results: Results) -> str:
    """Return the table: medians of the rounds, and medians of the ratios within each round."""
    return markdown(HEADER, _rows(results))


def growth_sentences(results: Results) -> list[str]:
    """Say in words how the relay's cost grows, with the range of the rounds."""
    sentences = []
    for growth in GROWTHS:
        exponents = results.exponents(growth, "relay")
        factor = results.per_doubling(growth, "relay")
        if factor is not None:
            sentences.append(
                f"{growth.title}: the relay's cost grows by {factor:.2f} for each doubling "
                f"(exponent {min(exponents):.2f} to {max(exponents):.2f} over {len(exponents)} rounds; "
                "1 is in proportion)."
            )
    return sentences
