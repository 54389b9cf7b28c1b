import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import relay_parts
from pinning import Pins
from quiet import Report
from relay_parts import FIGURES, Setting, tls_key
from servers import Server
from workloads import TLS_WORKLOADS, Workload

SERVER = Server(name="relay", command=(), token="", key="", environ={"A": "1"}, cwd=Path())
SETTING = Setting(
    servers={"relay": SERVER, "compiled": replace(SERVER, name="compiled")},
    secs=2.0,
    pins=Pins(),
    devices=100,
)


def test_tls_is_measured_in_each_build(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Sequence[str], Mapping[str, str]]] = []

    def run(command: Sequence[str], *, env: Mapping[str, str]) -> str:
        calls.append((command, env))
        return json.dumps({name: [[4.0, 5.0]] for name in TLS_WORKLOADS})

    monkeypatch.setattr(relay_parts, "run_quietly", run)
    found = relay_parts.measure_tls(SETTING)
    assert found.keys() == {figure.key for figure in FIGURES if figure.part == "tls"}
    assert {found[tls_key(name, build)] for name in TLS_WORKLOADS for build in SETTING.servers} == {1.25}
    assert [env for _, env in calls] == [{"A": "1"}] * 2
    assert list(calls[0][0][-5:]) == ["--messages", "20000", "--idle", "0", "--json"]


def test_memory_is_measured_with_and_without_a_history(monkeypatch: pytest.MonkeyPatch) -> None:
    kib = {None: 800, "0": 300}

    def measure(server: Server, workload: Workload, **_: object) -> Report:
        assert workload.devices == 100
        return {"kib_per_conn": kib[server.environ.get("BREWOS_RELAY_HISTORY_S")]}

    @contextmanager
    def running(_: Server, **__: object) -> Iterator[tuple[int, int]]:
        yield 1, 2

    def run_load(workload: Workload, server: Server, *, secs: float, **_: object) -> Report:
        assert (workload.devices, secs) == (100, 20.0)
        return {"pss_kib": 1000 + kib[server.environ.get("BREWOS_RELAY_HISTORY_S")]}

    monkeypatch.setattr(relay_parts, "measure", measure)
    monkeypatch.setattr(relay_parts, "running", running)
    monkeypatch.setattr(relay_parts, "run_load", run_load)
    monkeypatch.setattr(relay_parts, "pss_kib", lambda _: 1000)
    assert relay_parts.measure_history(SETTING) == {
        "idle_on_kib": 800,
        "idle_off_kib": 300,
        "brewing_on_kib": 8.0,
        "brewing_off_kib": 3.0,
    }
