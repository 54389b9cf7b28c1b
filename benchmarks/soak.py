"""Keep peers coming and going at a real server, and see that nothing of it grows.

    python benchmarks/soak.py [--minutes 10] [--devices 60] [--apps 240]

A few hundred devices and apps come and go, freeze, cut their connections, break the protocol and replace each
other. Once a second the server's memory, descriptors and threads are read from /proc (so only Linux will do);
every few seconds /api/health is compared with what the peers know. In the end the last third is compared with
the first one, without the warm-up, and after all peers have left nothing must be left of them.

Exit codes: 0 all is flat, 1 something grows or is miscounted, 2 wrong usage, 3 could not start.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import trio
from servers import BUILD, RATES_OFF, BenchError, Fleet, Server, prepare_relay, running
from soak_peers import Lives
from soak_wire import Connection, Crowd, Unanswered
from workloads import FIRST_DEVICE

WARM_UP_S = 90.0
"""Or a quarter of the whole time, if that is shorter."""
LINE_EVERY_S = 30.0
COMPARE_EVERY_S = 5.0
AGREE_WITHIN_S = 10.0
"""How long the counts of the relay and of the peers may differ."""
EMPTY_WITHIN_S = 30.0
"""How long after the last peer has left something of it may be left."""
STRANGERS = 8

MEMORY_GROWTH_KIB, MEMORY_GROWTH = 2048, 0.03
"""Memory may grow by the larger of these: an absolute amount, or a share. That is far less than 1 KiB for
each connection made meanwhile."""
DATABASE_DESCRIPTORS = 15
"""Files of the registry's connections, which are opened as they are needed, at most 5 of them, and kept."""
SOCKET_GROWTH = 8
"""What the peers hold and what the relay holds are not looked at in the same instant."""
THREAD_GROWTH = 3
LOG_SETTINGS = {"BREWOS_RELAY_LOG_LEVEL": "warning", "BREWOS_RELAY_LOG_FORMAT": "json"}


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server takes at one moment; `sockets` are those beside the peers'."""

    memory_kib: int
    sockets: int
    files: int
    threads: int


@dataclass(slots=True)
class Record:
    """The measurements so far."""

    samples: list[Sample] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)
    comparisons: int = 0


def descriptors(pid: int) -> tuple[int, int]:
    """Count a process's sockets, and its other descriptors."""
    sockets = others = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            is_socket = str(descriptor.readlink()).startswith("socket:")
            sockets += is_socket
            others += not is_socket
    return sockets, others


def sample(pid: int, crowd: Crowd) -> Sample:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    # Anonymous memory only: the share of mapped files depends on the other processes that map them.
    memory_kib = next(int(line.split()[1]) for line in rollup if line.startswith("Anonymous:"))
    threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
    sockets, files = descriptors(pid)
    return Sample(memory_kib, sockets - crowd.sockets, files, threads)


async def read_health(crowd: Crowd) -> dict[str, int]:
    """Ask the relay how many are connected. Raises Unanswered."""
    async with Connection(crowd, "stranger") as connection:
        await connection.connect()
        status, body = await connection.ask("GET /api/health HTTP/1.1\nHost: soak\nConnection: close")
        if status != 200:
            raise Unanswered(f"/api/health: {status}")
        health: dict[str, int] = json.loads(body)
        return health


async def compare(crowd: Crowd) -> str | None:
    """Compare the relay's counts with the peers'; say how they differ, if they do so for too long."""
    problem: str | None = None
    with trio.move_on_after(AGREE_WITHIN_S):
        while True:
            before = crowd.bounds()
            try:
                health = await read_health(crowd)
            except (OSError, Unanswered) as error:
                problem = f"/api/health does not answer ({error})"
                await trio.sleep(0.5)
                continue
            after = crowd.bounds()
            problem = None
            for kind, counted in (("device", health["devices"]), ("app", health["clients"])):
                least = len(before[kind][0] & after[kind][0])
                most = len(before[kind][1] | after[kind][1])
                if not least <= counted <= most:
                    problem = f"the relay counts {counted} {kind}s, and there are {least} to {most}"
            if problem is None:
                return None
            await trio.sleep(0.3)
    return problem


async def watch(crowd: Crowd, pid: int, record: Record) -> None:
    """Look at the server again and again, for ever."""
    began_at = compare_at = trio.current_time()
    line_at = began_at + LINE_EVERY_S
    while True:
        await trio.sleep(1)
        now = trio.current_time()
        record.samples.append(sample(pid, crowd))
        if now >= compare_at:
            compare_at = now + COMPARE_EVERY_S
            record.comparisons += 1
            if problem := await compare(crowd):
                record.disagreements.append(problem)
                print(f"       {problem}", flush=True)
        if now >= line_at:
            line_at += LINE_EVERY_S
            print(describe(crowd, record.samples[-1], round(now - began_at)), flush=True)


def describe(crowd: Crowd, last: Sample, at_s: int) -> str:
    bounds = crowd.bounds()
    devices, apps = (f"{len(least)} to {len(most)}" for least, most in (bounds["device"], bounds["app"]))
    return (
        f"{at_s // 60:3d}:{at_s % 60:02d}  devices {devices}, apps {apps}, connections made {crowd.made}; "
        f"memory {last.memory_kib / 1024:.1f} MiB, sockets beside the peers' {last.sockets}, "
        f"files {last.files}, threads {last.threads}"
    )


async def wait_empty(crowd: Crowd, pid: int, at_start: tuple[int, int]) -> str | None:
    """Wait until the relay counts and holds no peers; return a text about those that it still has."""
    left: str | None = "/api/health does not answer"
    with trio.move_on_after(EMPTY_WITHIN_S):
        while left is not None:
            await trio.sleep(0.5)
            try:
                health = await read_health(crowd)
            except (OSError, Unanswered):
                continue
            await trio.sleep(0.2)
            sockets, files = descriptors(pid)
            left = (
                f"{health['devices']} devices, {health['clients']} apps, "
                f"{sockets} sockets ({at_start[0]} at the start), {files} files ({at_start[1]})"
            )
            flat = sockets <= at_start[0] and files <= at_start[1] + DATABASE_DESCRIPTORS
            if flat and not health["devices"] and not health["clients"]:
                left = None
    return left


async def keep_churning(
    server: Server, port: int, pid: int, arguments: argparse.Namespace
) -> tuple[Record, Crowd, str | None]:
    """Connect and end peers for the whole time; return the record, the peers and the text of `wait_empty`."""
    lives = Lives(key=server.key, token=server.token, chance=random.Random(arguments.seed))
    record = Record()
    async with trio.open_nursery() as forgetting:
        crowd = Crowd(("127.0.0.1", port), forgetting)
        await use_everything_once(crowd, lives)
        at_start = descriptors(pid)
        with trio.move_on_after(arguments.minutes * 60):
            async with trio.open_nursery() as nursery:
                ids = [f"BRW-{FIRST_DEVICE + number:08X}" for number in range(arguments.devices)]
                for device_id in ids:
                    nursery.start_soon(lives.live_on, crowd, device_id, lives.of_device)
                for number in range(arguments.apps):
                    nursery.start_soon(lives.live_on, crowd, ids[number % len(ids)], lives.of_app)
                for number in range(STRANGERS):
                    nursery.start_soon(lives.live_on, crowd, ids[number % len(ids)], lives.of_stranger)
                nursery.start_soon(watch, crowd, pid, record)
        left = await wait_empty(crowd, pid, at_start)
    return record, crowd, left


async def use_everything_once(crowd: Crowd, lives: Lives) -> None:
    """Make the server open its database and start its threads, which it keeps."""
    device_id = f"BRW-{FIRST_DEVICE:08X}"
    with trio.move_on_after(4):
        async with trio.open_nursery() as nursery:
            for life in (lives.device, lives.app, lives.app, lives.refused_device):
                nursery.start_soon(life, crowd, device_id)
            for _ in range(10):
                nursery.start_soon(lives.stranger, crowd, device_id)
    await trio.sleep(1)


def grown(values: Sequence[float], limit: float) -> tuple[bool, str]:
    """Return whether the median of the last third exceeds the first by more than `limit`, and a text."""
    third = max(1, len(values) // 3)
    first, last = median(values[:third]), median(values[-third:])
    return last - first > limit, f"{first:.0f} → {last:.0f}, may grow by {limit:.0f}"


def judge(record: Record, crowd: Crowd, left: str | None, *, minutes: float) -> bool:
    """Print the verdict; True if all is flat."""
    warm = [*record.samples[int(min(WARM_UP_S, minutes * 15)) :]] or record.samples
    memory = [float(one.memory_kib) for one in warm]
    verdicts = [
        ("memory (KiB)", *grown(memory, max(MEMORY_GROWTH_KIB, MEMORY_GROWTH * memory[0]))),
        ("sockets beside the peers'", *grown([one.sockets for one in warm], SOCKET_GROWTH)),
        ("files", *grown([one.files for one in warm], DATABASE_DESCRIPTORS)),
        ("threads", *grown([one.threads for one in warm], THREAD_GROWTH)),
        (
            "counts of /api/health",
            bool(record.disagreements),
            f"{len(record.disagreements)} of {record.comparisons} comparisons differed",
        ),
        ("after the last peer", left is not None, left or "no peer is counted, descriptors as at the start"),
        ("complaints of the peers", bool(crowd.complaints), str(crowd.complaints or "nothing")),
        errors_in_log(),
    ]
    print(f"\n{crowd.made} connections were made; answers by status: {dict(sorted(crowd.statuses.items()))}")
    for name, failed, what in verdicts:
        print(f"{'FAILED' if failed else 'ok':<7}{name}: {what}")
    return not any(failed for _, failed, _ in verdicts)


def is_harmless(line: str) -> bool:
    """Whether a JSON line of the log reports no error; the line about the ready server is not JSON."""
    try:
        return json.loads(line)["level"] in {"debug", "info", "warning"}
    except (ValueError, TypeError, KeyError):
        return not line.strip() or line.startswith("brewos-relay is ready")


def errors_in_log() -> tuple[str, bool, str]:
    lines = (BUILD / "relay.log").read_text(errors="replace").splitlines()
    errors = [line for line in lines if not is_harmless(line)]
    return "the relay's log", bool(errors), errors[0] if errors else "no error"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Keep peers coming and going, and see that nothing grows.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default 10)")
    parser.add_argument("--devices", type=int, default=60, help="ids of devices (default 60)")
    parser.add_argument("--apps", type=int, default=240, help="apps that come and go (default 240)")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the peers' choices (default: another each time)"
    )
    chosen = parser.parse_args()
    if chosen.minutes < 0.2 or chosen.devices < 1 or chosen.apps < 0:
        parser.error("--minutes must be 0.2 at least, --devices 1, --apps 0")
    return chosen


def main() -> int:
    arguments = parse_arguments()
    if not sys.platform.startswith("linux"):
        print("the soak needs Linux (/proc)", file=sys.stderr)
        return 3
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="brewos-relay-soak-") as folder:
        try:
            server = prepare_relay(Fleet(folder=Path(folder), devices=arguments.devices), command=None)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 3
        # With the limits that a server has, and without a line for each that comes and goes.
        environ = {name: value for name, value in server.environ.items() if name not in RATES_OFF}
        server = replace(server, environ=environ | LOG_SETTINGS)
        try:
            with running(server) as (port, pid):
                record, crowd, left = trio.run(keep_churning, server, port, pid, arguments)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 3
    return 0 if judge(record, crowd, left, minutes=arguments.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
