"""The tables of the compiled relay: its targets, and further peers."""

from collections.abc import Mapping, Sequence
from statistics import median

from parts import values_of
from relay_parts import FIGURES, tls_key
from results import Results, is_noisy, judge_target, target_value
from table import LIBRARIES, NOTHING, markdown, number
from workloads import TLS_TARGET, TLS_WORKLOADS, WORKLOADS, Workload

COMPARED = ("floor", "picows", "node")
"""The servers that the compiled relay has targets against."""
FURTHER_PEERS = ("go", "websockets-trio", "websockets")
STEADY = 1.1
"""The range of the ratios is shown if the greatest is more than this many times the least."""


def targets_table(results: Results, parts: Sequence[Mapping[str, object]]) -> str:
    """Return the table of the compiled relay's targets; empty if nothing of it was measured."""
    rows = [_row(results, workload) for workload in WORKLOADS if _was_measured(results, workload)]
    rows += _tls_rows(parts)
    header = (
        *("Workload", "Figure", "Rounds", "Interpreted", "Compiled"),
        *(f"Compiled ÷ {_title(other)} (target)" for other in COMPARED),
        *("Own target", "Verdict"),
    )
    return markdown(header, rows)


def peers_table(results: Results) -> str:
    """Return the table of the further peers, beside the compiled relay; empty if none was measured."""
    rows = []
    for workload in WORKLOADS:
        key = workload.target_figure.key
        figures = [results.figure(workload.name, key, peer) for peer in FURTHER_PEERS]
        if _was_measured(results, workload) and any(figure is not None for figure in figures):
            rows.append(
                (
                    f"`{workload.name}`",
                    workload.target_figure.title,
                    *(
                        number(results.figure(workload.name, key, server), workload.target_figure.unit)
                        for server in ("compiled", *FURTHER_PEERS)
                    ),
                    *(number(results.ratio(workload.name, key, "compiled", peer)) for peer in FURTHER_PEERS),
                )
            )
    header = (
        *("Workload", "Figure", "Compiled"),
        *map(_title, FURTHER_PEERS),
        *(f"Compiled ÷ {_title(peer)}" for peer in FURTHER_PEERS),
    )
    return markdown(header, rows)


def _title(server: str) -> str:
    return server if server in LIBRARIES | {"floor"} else server.capitalize()


def _was_measured(results: Results, workload: Workload) -> bool:
    key = workload.target_figure.key
    return bool(workload.targets) and results.figure(workload.name, key, "compiled") is not None


def _row(results: Results, workload: Workload) -> tuple[str, ...]:
    figure = workload.target_figure
    others = [other for other in workload.targets if other != "compiled"]
    verdicts = [judge_target(results, workload, other) for other in workload.targets]
    notes = [
        note
        for note, applies in (
            ("noisy", any(is_noisy(_ratios(results, workload, other)) for other in others)),
            ("on the edge", any(_is_on_the_edge(results, workload, other) for other in workload.targets)),
            ("disturbed", results.is_disturbed(workload.name, ["compiled", *others])),
        )
        if applies
    ]
    return (
        f"`{workload.name}`",
        figure.title,
        str(len(results.rounds(workload.name, figure.key, "compiled"))),
        *(
            number(results.figure(workload.name, figure.key, server), figure.unit)
            for server in ("relay", "compiled")
        ),
        *(_reached(results, workload, other) for other in (*COMPARED, "compiled")),
        _verdict(verdicts, notes),
    )


def _verdict(verdicts: Sequence[bool | None], notes: Sequence[str] = ()) -> str:
    if False not in verdicts and None in verdicts:
        return NOTHING
    return ", ".join(["**MISSED**" if False in verdicts else "ok", *notes])


def _ratios(results: Results, workload: Workload, other: str) -> Sequence[float]:
    """Return what a target concerns, by round."""
    key = workload.target_figure.key
    if other == "compiled":
        return list(results.rounds(workload.name, key, other).values())
    return results.ratios(workload.name, key, "compiled", other)


def _is_on_the_edge(results: Results, workload: Workload, other: str) -> bool:
    """Whether some rounds met a target and others missed it."""
    return len({ratio <= workload.targets[other] for ratio in _ratios(results, workload, other)}) > 1


def _reached(results: Results, workload: Workload, other: str) -> str:
    """Write the median, the range if the rounds differ, and the target."""
    if other not in workload.targets:
        return NOTHING
    unit = workload.target_figure.unit if other == "compiled" else ""
    return _with_target(
        target_value(results, workload, other),
        _ratios(results, workload, other),
        workload.targets[other],
        kept=judge_target(results, workload, other),
        unit=unit,
    )


def _with_target(
    value: float | None, rounds: Sequence[float], target: float, *, kept: bool | None, unit: str = ""
) -> str:
    mark = "**" if kept is False else ""
    differ = rounds and max(rounds) > STEADY * min(rounds)
    spread = f", {number(min(rounds))} to {number(max(rounds))}" if differ else ""
    return f"{mark}{number(value, unit)}{mark}{spread} (≤ {number(target, unit)})"


def _tls_rows(parts: Sequence[Mapping[str, object]]) -> list[tuple[str, ...]]:
    """Return the rows for deliveries over TLS, divided by plain ones."""
    figures = {figure.key: figure for figure in FIGURES}
    rows = []
    for name in TLS_WORKLOADS:
        interpreted, compiled = (
            values_of(parts, figures[tls_key(name, build)]) for build in ("relay", "compiled")
        )
        if not compiled:
            continue
        kept = median(compiled) <= TLS_TARGET
        edge = ["on the edge"] if min(compiled) <= TLS_TARGET < max(compiled) else []
        rows.append(
            (
                f"TLS ÷ plain, {name}",
                "CPU per delivery",
                str(len(compiled)),
                number(median(interpreted)) if interpreted else NOTHING,
                number(median(compiled)),
                *([NOTHING] * len(COMPARED)),
                _with_target(median(compiled), compiled, TLS_TARGET, kept=kept),
                _verdict([kept], edge),
            )
        )
    return rows
