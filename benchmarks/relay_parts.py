"""Figures of the relay beside itself: with TLS and without, and with the history and without.

Run by `run.py --only tls,history`.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from measuring import measure, run_load
from parts import PartFigure
from pinning import Pins
from processes import pss_kib
from quiet import Report
from servers import HERE, Server, run_quietly, running
from workloads import TLS_TARGET, TLS_WORKLOADS, WORKLOADS, Workload

BUILDS = ("relay", "compiled")
TLS_MESSAGES_PER_S = 10_000
"""Messages that the part `tls` sends for each second of `--secs`."""
BREWING = Workload(
    name="brewing-500x1",
    group="history",
    mode="rate",
    devices=500,
    apps=1,
    arguments=("--rate", "2", "--size", "600"),
)
"""A shot of each device: two changes of the state in a second, as a machine sends them."""
BREWING_TIMES = 10
"""How many times as long as other measurements a shot takes."""
IDLE = next(workload for workload in WORKLOADS if workload.name == "idle-4000x1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the parts measure with."""

    servers: Mapping[str, Server]
    """The builds of the relay."""
    secs: float
    pins: Pins
    devices: int = 4_000
    """Devices that are idle while the memory of the history is measured."""

    @property
    def server(self) -> Server:
        """The compiled build, if there is one."""
        return self.servers.get("compiled") or self.servers["relay"]


def _figures() -> Iterator[PartFigure]:
    for build in BUILDS:
        for name in TLS_WORKLOADS:
            title = f"{name}, {'compiled' if build == 'compiled' else 'interpreted'}"
            limit = TLS_TARGET if build == "compiled" else None
            yield PartFigure(
                part="tls", key=tls_key(name, build), title=f"{title}, TLS ÷ plain", unit="x", limit=limit
            )
            for side in ("plain", "tls"):
                yield PartFigure(
                    part="tls", key=f"{build} {name} {side}_us", title=f"{title}, {side}", unit="µs"
                )
    for history in ("on", "off"):
        yield PartFigure(
            part="history",
            key=f"idle_{history}_kib",
            title=f"idle connection, memory with the history {history}",
            unit="KiB",
        )
    for history in ("on", "off"):
        yield PartFigure(
            part="history",
            key=f"brewing_{history}_kib",
            title=f"device in a shot and its app, memory with the history {history}",
            unit="KiB",
        )


def tls_key(name: str, build: str) -> str:
    """Return the key of the ratio of a workload of the part `tls`."""
    return f"{build} {name} times"


FIGURES = tuple(_figures())
PARTS = tuple(dict.fromkeys(figure.part for figure in FIGURES))


def measure_tls(setting: Setting) -> Report:
    """Compare deliveries over TLS with plain ones, in each build of the data path."""
    found: Report = {}
    messages = max(100, round(TLS_MESSAGES_PER_S * setting.secs))
    script = [sys.executable, str(HERE / "tls.py"), "--rounds", "1", "--messages", str(messages)]
    for build, server in setting.servers.items():
        output = run_quietly([*script, "--idle", "0", "--json"], env=server.environ)
        for name, pairs in json.loads(output).items():
            [(plain_us, tls_us)] = pairs
            found |= {f"{build} {name} plain_us": plain_us, f"{build} {name} tls_us": tls_us}
            if plain_us > 0:
                found[tls_key(name, build)] = tls_us / plain_us
    return found


def measure_history(setting: Setting) -> Report:
    """Compare the memory of a server that keeps a history with that of one that keeps none."""
    found = {}
    for history, seconds in (("on", None), ("off", "0")):
        environ = {**setting.server.environ}
        if seconds is not None:
            environ["BREWOS_RELAY_HISTORY_S"] = seconds
        server = replace(setting.server, name=f"{setting.server.name}-history-{history}", environ=environ)
        idle = measure(server, replace(IDLE, devices=setting.devices), secs=setting.secs, pins=setting.pins)
        found[f"idle_{history}_kib"] = idle["kib_per_conn"]
        found[f"brewing_{history}_kib"] = _measure_brewing(setting, server)
    return found


def _measure_brewing(setting: Setting, server: Server) -> float:
    """Return the memory of a device with its app while it brews, in KiB."""
    brewing = replace(BREWING, devices=min(BREWING.devices, setting.devices))
    with running(server, cpu=setting.pins.server) as (port, pid):
        before_kib = pss_kib(pid)
        report = run_load(
            brewing, server, port=port, pid=pid, secs=setting.secs * BREWING_TIMES, pins=setting.pins
        )
    return float(report["pss_kib"] - before_kib) / brewing.devices


MEASURE = {"tls": measure_tls, "history": measure_history}
