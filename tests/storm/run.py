"""Kill a real server under a real fleet, restart it, and measure when the peers are back.

Machines and apps wait and reconnect as in the field, and a machine loses its key if its connection ends
within 5 s of its 101. The server is first killed without warning, and later drained.

Exit codes: 0 all peers are back, 1 a peer is missing or lost its key, 2 wrong usage, 3 could not start.
"""

import argparse
import json
import math
import resource
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))  # this is run by its path

from brewos_relay.settings.server_limits import ServerLimits
from storm.fleet import LINE_EVERY_S, Fleet, switched_on, wait_complete
from storm.server import Relay
from storm.timeline import histogram, most_in_a_second, share_back_after
from support.certificates import client_context
from support.faithful_device import RECONNECT_S
from support.wire_client import WireClient

OLD_ENOUGH_S: Final = 8.0
NEWCOMERS_S: Final = 3.0
"""How long before the server stops new machines begin to connect. A killed server costs them their keys in
any case; a draining one must hold them."""
MOST_LATE_S: Final = 2.0
"""The longest delay of this process. Beyond it, the machines time out by themselves, and the figures say
nothing about the server: use fewer machines, or stop other programs."""
SLACK_S: Final = 40.0
SPARE_FILES: Final = 300
STOPS: Final = {"kill": signal.SIGKILL, "restart": signal.SIGTERM}


async def counted(relay: Relay, tls_context: ssl.SSLContext | None) -> tuple[int, int]:
    """Ask the server how many machines and apps it counts."""
    connection = await WireClient.connect(("127.0.0.1", relay.port), tls_context=tls_context)
    answer = await connection.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    connection.abort()
    health = json.loads(answer.body)
    return health["devices"], health["clients"]


def longest_s(devices: int, admit_rate: float) -> float:
    """Return the time limit for all to be back: each wave of reconnects admits `admit_rate` machines."""
    waves = math.ceil(devices / admit_rate)
    return waves * (RECONNECT_S + 0.5) + SLACK_S


async def storm(
    relay: Relay, fleet: Fleet, kind: str, arguments: argparse.Namespace, tls_context: ssl.SSLContext | None
) -> bool:
    """Stop and start the server, and check the fleet. Return True if all checks pass."""
    destroyed, young = fleet.keys_destroyed, fleet.young
    print(f"\n{kind}: the server gets {STOPS[kind].name}; {young} machines have just connected", flush=True)
    began_at = trio.current_time()
    code = await relay.stop(STOPS[kind])
    left_s = trio.current_time() - began_at
    await trio.sleep(arguments.down_s)
    before = fleet.keys_destroyed
    await relay.start()
    within_s = longest_s(arguments.devices, arguments.admit_rate)
    complete, late_s = await wait_complete(fleet, within_s=within_s)
    await trio.sleep(2)
    used_s, most_mib = relay.used()
    devices, apps = await counted(relay, tls_context)
    back_s = fleet.back_after_s(began_at)
    print(*histogram(back_s, step_s=LINE_EVERY_S), sep="\n")
    if back_s:
        half_s, all_s = (share_back_after(back_s, share) for share in (0.5, 1.0))
        print(f"half of the machines are back after {half_s:.1f} s, the last one after {all_s:.1f} s")
    print(f"meanwhile the server used {used_s:.1f} s of CPU time and at most {most_mib} MiB")
    fullest, most = most_in_a_second(back_s), math.ceil(2 * arguments.admit_rate) + 1
    lost, lost_later = before - destroyed, fleet.keys_destroyed - before
    # A killed server costs young machines their keys; a draining one costs none.
    doomed = young if kind == "kill" else 0
    expected = len(fleet.devices) - fleet.keys_destroyed
    return judge(
        {
            "all are back": (
                complete,
                f"{len(back_s)} machines, {fleet.apps_there} apps, {within_s:.0f} s",
            ),
            "the machines' own times": (late_s < MOST_LATE_S, f"kept to within {late_s:.1f} s"),
            "keys destroyed by the stop": (lost <= doomed, f"{lost}, with {young} new machines"),
            "keys destroyed later": (lost_later == 0, str(lost_later)),
            "admitted in one second": (fullest <= most, f"{fullest}, limit {most}"),
            "counted by the server": (
                (devices, apps) == (expected, arguments.apps),
                f"{devices} machines, {apps} apps",
            ),
            "the server's end": (
                code == (-signal.SIGKILL if kind == "kill" else 0),
                f"exit code {code} after {left_s:.1f} s",
            ),
        }
    )


def judge(verdicts: dict[str, tuple[bool, str]]) -> bool:
    for name, (fine, what) in verdicts.items():
        print(f"{'ok' if fine else 'FAILED':<7}{name}: {what}", flush=True)
    return all(fine for fine, _ in verdicts.values())


async def run(arguments: argparse.Namespace) -> bool:
    """Run all stops. Return True if all checks pass."""
    tls_context = client_context(ssl.TLSVersion.TLSv1_2) if arguments.tls else None
    with tempfile.TemporaryDirectory(prefix="brewos-relay-storm-") as folder:
        relay = Relay(Path(folder), admit_rate=arguments.admit_rate, tls=arguments.tls)
        await relay.import_machines(arguments.devices + arguments.newcomers * len(arguments.stops))
        await relay.start()
        fleet = Fleet(
            ("127.0.0.1", relay.port),
            devices=arguments.devices,
            apps=arguments.apps,
            tls_context=tls_context,
        )
        print(f"{arguments.devices} machines and {arguments.apps} apps connect", flush=True)
        try:
            async with switched_on(fleet) as nursery:
                complete, _ = await wait_complete(fleet, within_s=arguments.devices / 50 + 120)
                if not complete:
                    refused = sorted({status for app in fleet.apps for _, status in app.refused})
                    there = (
                        f"{fleet.devices_there} machines, {fleet.apps_there} apps; apps refused: {refused}"
                    )
                    return judge({"all connect": (False, there)})
                fine = True
                for kind in arguments.stops:
                    await trio.sleep(OLD_ENOUGH_S)
                    for device in fleet.add_devices(arguments.newcomers, within_s=NEWCOMERS_S):
                        nursery.start_soon(device.run)
                    await trio.sleep(NEWCOMERS_S)
                    fine = await storm(relay, fleet, kind, arguments, tls_context) and fine
        finally:
            with trio.CancelScope(shield=True):
                await relay.stop(signal.SIGKILL)
        errors = relay.errors()
        return judge({"the server's log": (not errors, errors[0] if errors else "no error")}) and fine


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill a server and measure when its peers are back.")
    parser.add_argument("--devices", type=int, default=2000, help="machines (default 2000)")
    parser.add_argument("--apps", type=int, default=400, help="apps (default 400)")
    parser.add_argument(
        "--admit-rate",
        type=float,
        default=ServerLimits().admit_rate,
        help="WebSockets that the server admits per second (default: its own)",
    )
    parser.add_argument("--tls", action="store_true", help="connect all peers over TLS")
    parser.add_argument(
        "--newcomers",
        type=int,
        default=50,
        help="machines that connect just before each stop (default 50)",
    )
    parser.add_argument("--down-s", type=float, default=1.0, help="s between stop and start (default 1)")
    parser.add_argument(
        "--stops",
        type=lambda text: text.split(","),
        default=list(STOPS),
        help="list of kill and restart, such as kill,kill,restart (default kill,restart)",
    )
    chosen = parser.parse_args(given)
    if min(chosen.apps, chosen.newcomers) < 0 or not set(chosen.stops) <= set(STOPS):
        parser.error("--apps and --newcomers must be at least 0, and --stops a list of kill and restart")
    if chosen.devices < 1 or chosen.admit_rate <= 0:
        parser.error("--devices must be at least 1, and --admit-rate above 0")
    return chosen


def main() -> int:
    arguments = parse_arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A machine has two connections after a loss.
    machines = arguments.devices + arguments.newcomers * len(arguments.stops)
    needed = 2 * machines + arguments.apps + SPARE_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        print(
            f"{needed} open files are needed, but ulimit -Hn is {hard}: use fewer --devices", file=sys.stderr
        )
        return 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began_s = time.monotonic()
    fine = trio.run(run, arguments)
    print(f"\n{'all checks passed' if fine else 'FAILED'}, after {time.monotonic() - began_s:.0f} s")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
