"""The figures of several instances: messages between them, their return to Redis, and several workers.

Run by `run.py --only cluster`.
"""

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median

from parts import PartFigure
from pinning import Pins, pinned_to
from processes import Process, cpu_s_of, descendants, pss_kib
from quiet import Report
from redis_server import RedisClient, RedisServer, running_redis
from servers import BUILD, BenchError, Server, running
from workloads import FIRST_DEVICE, WORKLOADS

from brewos_relay.errors import RelayError
from brewos_relay.server.private_redis import find_program

GROUP = "cluster"
METRICS_TOKEN = "benchmarks-read-metrics"
JOINED = "joined the cluster"
READY = "brewos-relay is ready"
ATTEMPTS = 3
SLICE_S = 0.25
"""How long the bus is measured at a time, before the server without it has its turn."""
RECLAIMED, LOCAL_DEVICES = 5_000, 20
LOCAL_RATE_HZ = 20.0
DOWN_S = 2.0
CLAIM_WITHIN_S = 30.0
LOOK_EVERY_S = 0.002
AROUND_RECLAIM_S = 6.0
"""How long local messages are measured: from before Redis is killed until all devices are claimed."""
WORKER_CORES = 2
LATE = "brewos_relay_loop_late_seconds_bucket"


LOCAL_WORKLOADS = ("fanout-50x1-w1", "fanout-1x100-w1", "command-50x1-w1")
WORKER_WORKLOADS = ("fanout-50x1-w4", "storm-4000x1")
WORKER_LATENCY = "latency-200x1-1k"


def _figures() -> Iterator[PartFigure]:
    def crossing(key: str, title: str, unit: str = "µs", limit: float | None = None) -> PartFigure:
        return PartFigure(part="crossing", key=key, title=title, unit=unit, limit=limit)

    yield crossing("crossing_p50_us", "crossing-400x1-2k, p50", limit=1_500)
    yield crossing("crossing_p99_us", "crossing-400x1-2k, p99", limit=5_000)
    yield crossing("crossing_p999_us", "crossing-400x1-2k, p99.9")
    for load, name in (("rate", "crossing-400x1-2k"), ("busy", "crossing-50x1-w4")):
        for process in ("device", "app", "redis"):
            whose = {"device": "the device's instance", "app": "the app's instance", "redis": "Redis"}[
                process
            ]
            yield crossing(f"{load}_{process}_us", f"{name}, CPU per delivery of {whose}")
    yield crossing("busy_per_s", "crossing-50x1-w4, deliveries a second", "")
    yield crossing("local_p50_us", "the same 2,000 a second within one instance, p50")
    yield crossing("local_p99_us", "the same 2,000 a second within one instance, p99")
    yield crossing("local_us", "the same 2,000 a second within one instance, CPU per delivery")
    for workload in LOCAL_WORKLOADS:
        yield PartFigure(
            part="local",
            key=f"{workload}_pct",
            title=f"{workload}, CPU time with a bus",
            unit="% more",
            limit=None if workload.startswith("command") else 3.0,
        )
        yield PartFigure(part="local", key=f"{workload}_us", title=f"{workload}, without a bus", unit="µs")
    yield PartFigure(
        part="reclaim",
        key="reclaim_ms",
        title="5,000 devices claimed after Redis' return",
        unit="ms",
        limit=1_000,
    )
    yield PartFigure(part="reclaim", key="reclaim_cpu_ms", title="CPU time of the instance", unit="ms")
    yield PartFigure(part="reclaim", key="reclaim_late_ms", title="event loop late, at most", unit="ms")
    yield PartFigure(
        part="reclaim", key="reclaim_local_p50_us", title="local messages meanwhile, p50", unit="µs"
    )
    yield PartFigure(
        part="reclaim", key="reclaim_local_p99_us", title="local messages meanwhile, p99", unit="µs"
    )
    yield PartFigure(
        part="reclaim", key="reclaim_local_max_us", title="local messages meanwhile, longest", unit="µs"
    )
    for workload in WORKER_WORKLOADS:
        yield PartFigure(
            part="workers",
            key=f"{workload}_times",
            title=f"{workload}, capacity of 2 workers ÷ 1",
            unit="x",
            limit=1.7,
            is_least=True,
        )
        yield PartFigure(
            part="workers", key=f"{workload}_rate_times", title=f"{workload}, rate of 2 workers ÷ 1", unit="x"
        )
        yield PartFigure(part="workers", key=f"{workload}_one_us", title=f"{workload}, CPU with 1", unit="µs")
        yield PartFigure(part="workers", key=f"{workload}_two_us", title=f"{workload}, CPU with 2", unit="µs")
        yield PartFigure(
            part="workers",
            key=f"{workload}_busier_pct",
            title=f"{workload}, share of the busier worker",
            unit="%",
        )
    for count, name in ((1, "one process"), (2, "2 workers")):
        for key in ("p50_us", "p99_us"):
            yield PartFigure(
                part="workers",
                key=f"latency_{count}_{key}",
                title=f"{WORKER_LATENCY}, {key.removesuffix('_us')} of {name}",
                unit="µs",
            )
    yield PartFigure(
        part="workers", key="worker_mib", title="memory of another worker", unit="MiB", limit=60.0
    )
    yield PartFigure(part="workers", key="parent_mib", title="memory of the parent and of Redis", unit="MiB")


FIGURES = tuple(_figures())
PARTS = tuple(dict.fromkeys(figure.part for figure in FIGURES))
_COMMANDS = {workload.name: workload.command for workload in WORKLOADS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What each part measures with."""

    server: Server
    redis: str
    """The program of the Redis server."""
    secs: float
    pins: Pins
    devices: int = RECLAIMED
    """Devices that are claimed again."""
    connecting: int = 4_000
    """Devices of the storm."""

    @contextmanager
    def redis_server(self) -> Iterator[RedisServer]:
        with running_redis(self.redis, cpu=self.pins.server) as server:
            yield server

    def instance(self, name: str, bus: RedisServer) -> Server:
        """Return the server as one instance on a bus."""
        environ = {
            **self.server.environ,
            "BREWOS_RELAY_BUS": bus.url,
            "BREWOS_RELAY_INSTANCE": name,
            "BREWOS_RELAY_METRICS_TOKEN": METRICS_TOKEN,
        }
        return replace(self.server, name=f"relay-{name}", environ=environ, announces=JOINED)

    def workers(self, count: int) -> Server:
        """Return the server with several workers. One is a single process without a parent."""
        command = (*self.server.command, "--workers", str(count))
        return replace(self.server, name=f"relay-{count}-workers", command=command, announces=READY)

    def load(self, arguments: Sequence[str], *, pids: Sequence[int], secs: float | None = None) -> list[str]:
        """Return a command of the load generator."""
        options = {
            "key": self.server.key,
            "token": self.server.token,
            "secs": str(self.secs if secs is None else secs),
        }
        return [
            *(str(BUILD / "load"), *arguments, "--verbose"),
            *(part for name, value in options.items() for part in (f"--{name}", value)),
            *(part for pid in pids for part in ("--pid", str(pid))),
        ]

    def run(self, arguments: Sequence[str], *, pids: Sequence[int], secs: float | None = None) -> Report:
        """Run the load generator to its end. Raises BenchError if a connection fails."""
        process = self.start(arguments, pids=pids, secs=secs)
        return read_report(process)

    def start(
        self, arguments: Sequence[str], *, pids: Sequence[int] = (), secs: float | None = None
    ) -> subprocess.Popen[str]:
        """Start the load generator."""
        return subprocess.Popen(
            self.load(arguments, pids=pids, secs=secs),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=pinned_to(self.pins.generator),
        )


Part = Callable[[Setting], dict[str, float]]


def read_report(process: subprocess.Popen[str]) -> Report:
    output, complaints = process.communicate()
    if process.returncode:
        raise BenchError(f"the load generator failed:\n{complaints.strip()[:2000]}")
    report: Report = json.loads(output)
    return report


def cpu_of_each(report: Report) -> list[float]:
    """Return the CPU time of each measured process in s."""
    each: list[float] = report["cpu_s"]
    return each


def sizes(mode: str, devices: int, apps: int = 1, *, first: int = FIRST_DEVICE) -> list[str]:
    return [mode, "--devices", str(devices), "--apps", str(apps), "--base", hex(first)]


# Messages between two instances


def measure_crossing(setting: Setting) -> dict[str, float]:
    """Devices on one instance, apps on the other one: 2,000 deliveries a second, and as many as possible."""
    found = {}
    steady = [*sizes("rate", 400), "--rate", "5", "--size", "600"]
    busy = [*sizes("fanout", 50), "--window", "4"]
    cpu = setting.pins.server
    with (
        setting.redis_server() as redis,
        running(setting.instance("devices", redis), cpu=cpu) as (device_port, device_pid),
        running(setting.instance("apps", redis), cpu=cpu) as (port, pid),
    ):
        ports = ["--port", str(port), "--device-port", str(device_port)]
        pids = (device_pid, pid, redis.pid)
        for name, workload in (("rate", steady), ("busy", busy)):
            report = setting.run([*workload, *ports], pids=pids)
            for process, cpu_s in zip(("device", "app", "redis"), cpu_of_each(report), strict=True):
                found[f"{name}_{process}_us"] = cpu_s * 1e6 / max(1, report["deliveries"])
            if name == "rate":
                found |= {f"crossing_{key}": report[key] for key in ("p50_us", "p99_us", "p999_us")}
            else:
                found["busy_per_s"] = report["per_s"]
    with running(setting.server, cpu=cpu) as (port, pid):
        report = setting.run([*steady, "--port", str(port)], pids=[pid])
        found |= {
            "local_p50_us": report["p50_us"],
            "local_p99_us": report["p99_us"],
            "local_us": report["cpu_us_per_delivery"],
        }
    return found


# Messages within an instance


def measure_local(setting: Setting) -> dict[str, float]:
    """Compare a server with a bus and one without: both run, and take turns in short slices."""
    cpu = setting.pins.server
    found = {}
    with (
        setting.redis_server() as redis,
        running(setting.instance("bus", redis), cpu=cpu) as with_bus,
        running(setting.server, cpu=cpu) as without,
    ):

        def cost_us(workload: str, server: tuple[int, int]) -> float:
            port, pid = server
            arguments = [*_COMMANDS[workload], "--port", str(port), "--warm", "0.1", "--settle", "0.3"]
            for _ in range(ATTEMPTS):
                report = setting.run(arguments, pids=[pid], secs=min(SLICE_S, setting.secs))
                # On a busy computer, an app may be missing when its device sends, which then waits in vain.
                if report["deliveries"]:
                    return float(report["cpu_us_per_delivery"])
            raise BenchError(f"{workload}: no message arrived")

        pairs = 2 * max(1, round(setting.secs / SLICE_S / 2))
        for workload in LOCAL_WORKLOADS:
            costs, ratios = [], []
            for pair in range(pairs):
                first, second = (without, with_bus) if pair % 2 else (with_bus, without)
                cost = {first: cost_us(workload, first), second: cost_us(workload, second)}
                costs.append(cost[without])
                ratios.append(cost[with_bus] / cost[without])
            found[f"{workload}_us"] = median(costs)
            found[f"{workload}_pct"] = (median(ratios) - 1) * 100
    return found


# The return of Redis


def measure_reclaim(setting: Setting) -> dict[str, float]:
    """Kill Redis under an instance with many devices, start it again, and wait until it has all of them."""
    cpu = setting.pins.server
    with ExitStack() as stack:
        redis = stack.enter_context(setting.redis_server())
        port, pid = stack.enter_context(running(setting.instance("reclaim", redis), cpu=cpu))
        ports = ["--port", str(port)]
        idle = setting.start([*sizes("idle", setting.devices, 0), *ports], secs=600)
        stack.callback(_end, idle)
        _await_owned(redis, setting.devices)
        local = [
            *sizes("rate", LOCAL_DEVICES, first=FIRST_DEVICE + setting.devices),
            "--rate",
            str(LOCAL_RATE_HZ),
        ]
        talking = setting.start([*local, *ports], secs=AROUND_RECLAIM_S)
        stack.callback(_end, talking)
        everything = setting.devices + LOCAL_DEVICES
        _await_owned(redis, everything)
        time.sleep(1.5)  # until the messages are measured
        before = read_late(port)
        redis.kill()
        time.sleep(DOWN_S)
        cpu_before_s = cpu_s_of(pid)
        returned_s = redis.start()
        claimed_s = _await_owned(redis, everything)
        spent_s = cpu_s_of(pid) - cpu_before_s
        time.sleep(0.5)  # until the event loop has noted how late it was
        late_ms = latest_ms(before, read_late(port))
        report = read_report(talking)
    return {
        "reclaim_ms": (claimed_s - returned_s) * 1e3,
        "reclaim_cpu_ms": spent_s * 1e3,
        "reclaim_late_ms": late_ms,
        "reclaim_local_p50_us": report["p50_us"],
        "reclaim_local_p99_us": report["p99_us"],
        "reclaim_local_max_us": report["max_us"],
    }


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _await_owned(redis: RedisServer, devices: int) -> float:
    """Wait until this many devices have an owner, and return the monotonic time."""
    deadline_s = time.monotonic() + CLAIM_WITHIN_S
    with redis.connect() as client:
        while time.monotonic() < deadline_s:
            # Redis counts all keys at no cost. Besides owners, there are a lease and the list of instances.
            if int(client.call("DBSIZE")) >= devices + 2:
                at_s = time.monotonic()
                if count_owned(client) >= devices:
                    return at_s
            time.sleep(LOOK_EVERY_S)
        owned = count_owned(client)
    raise BenchError(f"{owned} of {devices} devices had an owner after {CLAIM_WITHIN_S:g} s")


def count_owned(client: RedisClient) -> int:
    return int(client.call("EVAL", "\"return #redis.call('KEYS','*own:*')\"", "0"))


def read_late(port: int) -> dict[float, float]:
    """Read the histogram of the event loop's lateness in s from the server's metrics."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {METRICS_TOKEN}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {
        float(line.partition('le="')[2].partition('"')[0]): float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(LATE)
    }


def latest_ms(before: Mapping[float, float], after: Mapping[float, float]) -> float:
    """Return by how many ms the event loop was late at most: the least bound that all wake-ups kept."""
    new = {bound: after[bound] - before.get(bound, 0) for bound in after}
    return min(bound for bound, count in new.items() if count == max(new.values())) * 1e3


# Several workers


def measure_workers(setting: Setting) -> dict[str, float]:
    """Compare two workers with a single process, and three with two.

    The workers may use all processors, but only that of the single process when latencies are measured: the
    generator uses all of its own.
    """
    fanout, connecting = WORKER_WORKLOADS
    latency = _COMMANDS[WORKER_LATENCY]
    storm = [*sizes("storm", setting.connecting), "--settle", "0"]
    cpu = setting.pins.server
    with running(setting.server, cpu=cpu) as (port, pid):
        fanout_one = setting.run([*_COMMANDS[fanout], "--port", str(port)], pids=[pid])
        latency_one = setting.run([*latency, "--port", str(port)], pids=[pid])
    with running(setting.server, cpu=cpu) as (port, pid):
        storm_one = setting.run([*storm, "--port", str(port)], pids=[pid], secs=0)
    fanout_two, kib_of_two = _run_workers(setting, 2, _COMMANDS[fanout], setting.secs)
    storm_two, _ = _run_workers(setting, 2, storm, 0)
    latency_two, _ = _run_workers(setting, 2, latency, setting.secs, cpu=cpu)
    _, kib_of_three = _run_workers(setting, 3, _COMMANDS[fanout], setting.secs)

    found = {
        "worker_mib": (sum(kib_of_three) - sum(kib_of_two)) / 1024,
        "parent_mib": sum(kib_of_two[2:]) / 1024,
    }
    for name, one, two in ((fanout, fanout_one, fanout_two), (connecting, storm_one, storm_two)):
        found |= {f"{name}_{key}": value for key, value in compare_workers(one, two).items()}
    for count, report in ((1, latency_one), (2, latency_two)):
        found |= {f"latency_{count}_{key}": report[key] for key in ("p50_us", "p99_us")}
    return found


def _run_workers(
    setting: Setting, count: int, workload: Sequence[str], secs: float, *, cpu: int | None = None
) -> tuple[Report, list[int]]:
    """Run a workload on several workers; return its report, and the memory of each process in KiB.

    The workers are the first processes, then come their parent, their template and Redis.
    """
    with running(setting.workers(count), cpu=cpu) as (port, pid):
        started = descendants(pid)
        workers = workers_among(started, pid)
        if len(workers) != count:
            raise BenchError(f"{len(workers)} of {count} workers run")
        others = [each.pid for each in started if each.pid not in workers]
        pids = [*workers, pid, *others]
        report = setting.run([*workload, "--port", str(port)], pids=pids, secs=secs)
        return report, [pss_kib(each) for each in pids]


def workers_among(started: Sequence[Process], pid: int) -> list[int]:
    """Return the ids of the workers among the processes that a parent has started: forks of their template.

    Redis has a shell as its parent.
    """
    templates = {each.pid for each in started if each.parent == pid and each.name != "sh"}
    return [each.pid for each in started if each.parent in templates]


def compare_workers(one: Report, two: Report) -> dict[str, float]:
    """Compare a load on two workers with that on one process.

    The generator takes a part of one of the two cores, so the rates alone say little. The capacity is the
    work for a second of CPU time of the busier worker, but not more than two cores can do for all processes:
    workers, parent and Redis. That of one process is the work for a second of its CPU time.

    The rate is divided by the cores that the generator left to the server. Idle time counts as used.
    """
    work = {id(report): report.get("deliveries") or report["conns"] for report in (one, two)}
    took = {id(report): report.get("elapsed_s") or report["connect_s"] for report in (one, two)}
    cpu_one, cpu_two = cpu_of_each(one), cpu_of_each(two)
    workers = cpu_two[:2]
    capacity_one = work[id(one)] / sum(cpu_one)
    capacity_two = work[id(two)] / max(*workers, sum(cpu_two) / WORKER_CORES)
    left = WORKER_CORES - two["generator_cpu_s"] / took[id(two)]
    rate_one = work[id(one)] / took[id(one)]
    rate_two = work[id(two)] / took[id(two)] / left * WORKER_CORES
    return {
        "times": capacity_two / capacity_one,
        "rate_times": rate_two / rate_one,
        "one_us": 1e6 / capacity_one,
        "two_us": sum(cpu_two) * 1e6 / work[id(two)],
        "busier_pct": max(workers) / sum(workers) * 100,
    }


MEASURE: Mapping[str, Part] = {
    "crossing": measure_crossing,
    "local": measure_local,
    "reclaim": measure_reclaim,
    "workers": measure_workers,
}


def redis_program() -> str:
    """Return the program of a Redis server. Raises BenchError if there is none."""
    try:
        return find_program()
    except RelayError as error:
        raise BenchError(str(error)) from error
