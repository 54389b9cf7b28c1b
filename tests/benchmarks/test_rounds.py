from collections.abc import Mapping
from pathlib import Path

import pytest
import rounds
from measuring import duration_s
from pinning import Pins
from progress import optimisation
from quiet import Quiet, Report
from rounds import Plan, Progress, measure_rounds
from saved import Saved, read_saved
from servers import BenchError, Server
from workloads import WORKLOADS, Workload

FANOUT, STORM = (w for w in WORKLOADS if w.name in {"fanout-50x1-w1", "storm-4000x1"})


def server(name: str) -> Server:
    return Server(name=name, command=(), token="", key="", environ={}, cwd=Path())


def plan(runs: int = 2, json: Path | None = None) -> Plan:
    servers = [server("floor"), server("compiled")]
    turns: Mapping[Workload, list[Server]] = {FANOUT: servers, STORM: servers}
    return Plan(
        turns=turns,
        parts={"tls": lambda: {"figure": 1.0}},
        runs=runs,
        secs=2.0,
        pins=Pins(),
        quiet=Quiet(repeats=0, look=lambda: 3.0),
        json=json,
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Replace measurements, and return their order. Storms against the floor fail."""
    order: list[tuple[str, str]] = []

    def measure(server: Server, workload: Workload, **_: object) -> Report:
        order.append((workload.name, server.name))
        if (workload, server.name) == (STORM, "floor"):
            raise BenchError("refused")
        return {figure.key: 1.0 for figure in workload.figures}

    monkeypatch.setattr(rounds, "measure_quietly", measure)
    monkeypatch.setattr(rounds, "adopt_orphans", lambda: None)
    return order


def test_servers_take_turns_within_a_workload(measured: list[tuple[str, str]]) -> None:
    saved = Saved()
    assert measure_rounds(plan(), saved) == 2
    assert measured[:2] == [(FANOUT.name, "floor"), (FANOUT.name, "compiled")]
    assert measured[4:6] == [(FANOUT.name, "compiled"), (FANOUT.name, "floor")]
    assert [(row["run"], row["server"]) for row in saved.reports if row["workload"] == STORM.name] == [
        (0, "compiled"),
        (1, "compiled"),
    ]
    assert [(row["run"], row["part"], row["figure"]) for row in saved.parts] == [(0, "tls", 1), (1, "tls", 1)]
    assert [(row["run"], row["others_pct"]) for row in saved.rounds] == [(0, 3.0), (1, 3.0)]


def test_measurements_are_written_before_an_interruption(
    measured: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "all.json"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "measure_part", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_rounds(plan(json=file), Saved(caption="x"))
    assert len(read_saved([file]).reports) == 3


def test_time_left_is_estimated_before_and_while_measuring() -> None:
    chosen = plan()
    moments = iter((0.0, 2 * duration_s(FANOUT, 2.0)))
    progress = Progress(chosen, clock=moments.__next__)
    minutes = chosen.round_s * 2 / 60
    assert progress.begin(duration_s(FANOUT, 2.0)) == f"[1/10 {minutes:3.0f} min left]"
    slower = (chosen.round_s * 2 - duration_s(FANOUT, 2.0)) * 2 / 60
    assert progress.begin(0) == f"[2/10 {slower:3.0f} min left]"
    assert f"2 rounds of about {chosen.round_s / 60:.1f} min, {minutes:.0f} min in all" in chosen.describe()


def test_each_workload_has_an_estimated_duration() -> None:
    assert all(duration_s(workload, 2.0) > 2 for workload in WORKLOADS)


@pytest.mark.parametrize(
    ("config_args", "base_prefix", "found"),
    [
        ("'--enable-optimizations' '--with-lto'", "/opt/python", "optimised"),
        ("'--enable-shared'", "/opt/python", None),
        ("'--enable-shared'", "/usr", "the distribution's build"),
    ],
)
def test_optimised_python_is_recognised(config_args: str, base_prefix: str, found: str | None) -> None:
    assert optimisation(config_args, base_prefix) == found
