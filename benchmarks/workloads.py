"""The workloads, the servers that run them, and the limits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

FIRST_DEVICE = 0x100
SERVERS = ("floor", "relay", "compiled", "node", "go", "picows", "websockets", "websockets-trio")
WITH_TLS = SERVERS[1:]
GROWING = ("floor", "relay", "picows")
"""Those whose growth is measured: each takes as many measurements as there are sizes."""
FASTER = 10
"""How many times as often as in life the machines of the fleet speak: else there is too little to measure."""

TARGETS: Mapping[str, Mapping[str, float]] = {
    "fanout-50x1-w1": {"floor": 1.30, "picows": 1.15, "node": 0.65},
    "fanout-50x1-w4": {"floor": 1.05, "picows": 0.85, "node": 0.40},
    "fanout-1x100-w1": {"floor": 1.15, "picows": 1.05, "node": 0.65},
    "command-50x1-w1": {"floor": 1.30, "picows": 1.20, "node": 0.65},
    "rate-2000x1": {"floor": 1.80, "picows": 1.50, "node": 0.85},
    "latency-200x1-1k": {"floor": 2.0, "picows": 1.5},
    "idle-4000x1": {"compiled": 5.0},
    "idle-tls-500x1": {"compiled": 18.0},
    "storm-4000x1": {"picows": 1.00, "node": 0.90},
    "storm-tls-500x1": {"picows": 1.10, "node": 0.70},
}
"""Targets of the compiled relay by workload: how many times the figure of each of these servers it may take
at most, and, by its own name, the figure itself."""
TARGET_FIGURES = {"latency-200x1-1k": "p99_us"}
"""The key of the figure that the targets of a workload concern, if it is not the first one."""
TLS_TARGET = 1.4
"""CPU time of a delivery over TLS, divided by that of a plain one: the target of the compiled relay."""
TLS_WORKLOADS = {
    "1x100, 600 B": (1, 100, 600, 1),
    "50x1, 600 B": (50, 1, 600, 10),
    "20x10, 130 B": (20, 10, 130, 3),
}
"""Deliveries over TLS and plain: devices, apps per device, bytes of a message, a factor for their number."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a measurement: its key in the report of `load`, its label, and its unit."""

    key: str
    title: str
    unit: str


CPU = Figure("cpu_us_per_delivery", "CPU per delivery", "µs")
CPU_OF_ALL = Figure("cpu_ms_per_s", "CPU per second", "ms")
LATENCIES = (
    Figure("p50_us", "p50", "µs"),
    Figure("p99_us", "p99", "µs"),
    Figure("p999_us", "p99.9", "µs"),
)
MEMORY = Figure("kib_per_conn", "memory per connection", "KiB")
CONNECTING = Figure("cpu_us_per_conn", "CPU per connection", "µs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What `load` is told, which of its figures count, and how high they may be for the relay.

    `limit` is for the first figure of the interpreted relay: a multiple of the floor's figure where
    `limits_ratio` is true, and the figure itself elsewhere; None is no limit. `is_quick` says whether a quick
    look takes it.
    """

    name: str
    group: str
    mode: str
    devices: int
    apps: int
    figures: tuple[Figure, ...] = (CPU,)
    arguments: tuple[str, ...] = ()
    limit: float | None = None
    limits_ratio: bool = True
    servers: tuple[str, ...] = SERVERS
    tls: bool = False
    is_quick: bool = False

    @property
    def connections(self) -> int:
        return self.devices * (self.apps + 1)

    @property
    def target_figure(self) -> Figure:
        """The figure that the targets concern."""
        key = TARGET_FIGURES.get(self.name)
        return next((figure for figure in self.figures if figure.key == key), self.figures[0])

    @property
    def targets(self) -> Mapping[str, float]:
        return TARGETS.get(self.name, {})

    @property
    def is_timed(self) -> bool:
        """Whether other programs that use the processors change the figures."""
        return MEMORY not in self.figures

    @property
    def command(self) -> list[str]:
        """The arguments of `load` that make this workload."""
        sizes = ["--devices", str(self.devices), "--apps", str(self.apps), "--base", hex(FIRST_DEVICE)]
        return [self.mode, *sizes, *self.arguments]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How a cost grows with a size, over the workloads of a group.

    The cost is that of all the work: of a message to all apps, of a second of all devices. `limit` is by how
    much it may grow when the size doubles; 2 is in proportion.
    """

    group: str
    title: str
    axis: str
    cost: str
    limit: float
    sizes: Mapping[str, int]


def _fanout(devices: int, apps: int, window: int, limit: float, *, is_quick: bool = False) -> Workload:
    return Workload(
        name=f"fanout-{devices}x{apps}-w{window}",
        group="delivery",
        mode="fanout",
        devices=devices,
        apps=apps,
        arguments=("--window", str(window)),
        limit=limit,
        is_quick=is_quick,
    )


def _latency(devices: int, apps: int, rate_hz: float, *, is_quick: bool = False) -> Workload:
    deliveries_per_s = devices * apps * rate_hz
    return Workload(
        name=f"latency-{devices}x{apps}-{deliveries_per_s / 1000:g}k",
        group="latency",
        mode="rate",
        devices=devices,
        apps=apps,
        figures=LATENCIES,
        arguments=("--rate", f"{rate_hz:g}", "--size", "600"),
        is_quick=is_quick,
    )


def _delivery() -> Iterator[Workload]:
    yield _fanout(50, 1, 1, 2.0, is_quick=True)
    yield _fanout(50, 1, 4, 1.6)
    yield _fanout(1, 100, 1, 1.4, is_quick=True)
    yield _fanout(20, 10, 4, 1.6)
    yield Workload(
        name="command-50x1-w1",
        group="delivery",
        mode="command",
        devices=50,
        apps=1,
        arguments=("--window", "1"),
        limit=2.4,
    )
    yield Workload(
        name="rate-2000x1",
        group="delivery",
        mode="rate",
        devices=2000,
        apps=1,
        arguments=("--rate", "1", "--size", "130"),
        limit=3.8,
    )


def _connections() -> Iterator[Workload]:
    both = {"memory": ("idle", MEMORY, 7.0), "storm": ("storm", CONNECTING, 350.0)}
    for group, (mode, figure, limit) in both.items():
        yield Workload(
            name=f"{mode}-4000x1",
            group=group,
            mode=mode,
            devices=4000,
            apps=1,
            figures=(figure,),
            limit=limit,
            limits_ratio=False,
        )
        yield Workload(
            name=f"{mode}-tls-500x1",
            group=group,
            mode=mode,
            devices=500,
            apps=1,
            figures=(figure,),
            servers=WITH_TLS,
            tls=True,
            is_quick=True,
        )


def _growing() -> Iterator[Workload]:
    for apps in (1, 3, 10, 30, 100, 300, 1000):
        yield Workload(
            name=f"apps-1x{apps}",
            group="apps",
            mode="fanout",
            devices=1,
            apps=apps,
            servers=GROWING,
            is_quick=apps in {1, 30, 1000},
        )
    for devices in (10, 40, 160, 640, 2000, 4000):
        yield Workload(
            name=f"devices-{devices}x1",
            group="devices",
            mode="fleet",
            devices=devices,
            apps=1,
            figures=(CPU_OF_ALL,),
            arguments=("--rate", str(FASTER)),
            servers=GROWING,
            is_quick=devices in {10, 640, 4000},
        )


WORKLOADS = (
    *_delivery(),
    _latency(200, 1, 5, is_quick=True),
    _latency(1000, 1, 5),
    _latency(10, 10, 50),
    _latency(1, 100, 20),
    *_connections(),
    *_growing(),
)
GROUPS = tuple(dict.fromkeys(workload.group for workload in WORKLOADS))
GROWTHS = (
    Growth(
        group="apps",
        title="1 to 1,000 apps of one device",
        axis="apps",
        cost="CPU of a message to all apps, µs",
        limit=2.1,
        sizes={w.name: w.apps for w in WORKLOADS if w.group == "apps"},
    ),
    Growth(
        group="devices",
        title="10 to 4,000 devices of a fleet",
        axis="devices",
        cost=f"CPU of a second, ms (the fleet speaks {FASTER} times as often as in life)",
        limit=2.1,
        sizes={w.name: w.devices for w in WORKLOADS if w.group == "devices"},
    ),
)


def choose(only: frozenset[str], *, quick: bool) -> list[Workload]:
    """Return the workloads of these names or groups (else all), or those among them for a quick look."""
    return [
        workload
        for workload in WORKLOADS
        if (not only or workload.name in only or workload.group in only)
        and (not quick or workload.is_quick or workload.name in only)
    ]
