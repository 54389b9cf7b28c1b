"""Kill a real server under a real fleet, restart it, and see who is back when.

Machines and apps behave as those in people's homes do: what they wait for, and what costs a machine its key
(a connection that ends within 5 s of its 101). The server is killed without a warning, then asked to leave.

Exit codes: 0 all is well, 1 somebody is missing or lost a key, 2 wrong usage, 3 could not start.
"""

import argparse
import json
import math
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))  # this is run by its path

from brewos_relay.core.limits import Limits
from storm.timeline import histogram, most_in_a_second, share_back_after
from support.faithful_app import FaithfulApp
from support.faithful_device import RECONNECT_S, FaithfulDevice
from support.logs import errors_in
from support.process import KEY, Reach, environment, machine_id

START_S: Final = 20.0
SPREAD_S: Final = 10.0
"""Over how long the fleet is switched on, for each thousand."""
OLD_ENOUGH_S: Final = 8.0
"""A server that dies under a machine that has just come costs it its key, whatever the server does."""
LOOK_EVERY_S: Final = 0.25
LINE_EVERY_S: Final = 5.0
SLACK_S: Final = 40.0
SPARE_FILES: Final = 300
APP_ORIGIN: Final = "https://cloud.example"
"""Where the apps say that they come from."""
STOPS: Final = {"kill": signal.SIGKILL, "restart": signal.SIGTERM}


class Relay:
    """The server: a process that is started again and again, on one port, with one folder."""

    def __init__(self, folder: Path, *, admit_rate: float) -> None:
        self.folder = folder
        self.log_file = folder / "server.log"
        self.port = 0
        self._environ = environment(
            BREWOS_RELAY_ADMIT_RATE=admit_rate,
            BREWOS_RELAY_LOG_LEVEL="warning",
            BREWOS_RELAY_LOG_FORMAT="json",
            BREWOS_RELAY_ALLOWED_ORIGINS=APP_ORIGIN,
            DATA_DIR=folder,
        )
        self._process: trio.Process | None = None

    async def import_machines(self, count: int) -> None:
        csv = self.folder / "machines.csv"
        csv.write_text("".join(f"{machine_id(number)},{KEY}\n" for number in range(count)))
        command = [sys.executable, "-m", "brewos_relay", "device", "import", str(csv)]
        await trio.run_process(command, cwd=self.folder, env=self._environ, capture_stdout=True)

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        command = [sys.executable, "-m", "brewos_relay", "serve", "--host", "127.0.0.1"]
        with self.log_file.open("ab") as log:
            self._process = await trio.lowlevel.open_process(
                [*command, "--port", str(self.port)],
                cwd=self.folder,
                env=self._environ,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        output = b""
        assert self._process.stdout is not None
        with trio.move_on_after(START_S):
            while data := await self._process.stdout.receive_some():
                output += data
                if found := re.search(rb"http://127\.0\.0\.1:(\d+)\D", output):
                    self.port = int(found[1])
                    return
        raise SystemExit(f"the server did not start: {self.log_file.read_text()[-2000:]}")

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal; wait for the end, and return the exit code."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(number)
        code = await self._process.wait()
        await self._process.stdout.aclose()
        return code

    def errors(self) -> list[str]:
        return errors_in(self.log_file.read_text(errors="replace"))


class Fleet:
    """All machines and apps."""

    def __init__(self, address: tuple[str, int], *, devices: int, apps: int) -> None:
        chance = random.Random(7)
        reach = Reach(address)
        spread_s = SPREAD_S * max(devices, 500) / 1000
        self.devices = [
            FaithfulDevice(address, machine_id(number), KEY, grace_s=chance.uniform(0, spread_s))
            for number in range(devices)
        ]
        self.apps = [
            FaithfulApp(address, machine_id(number % devices), lambda: reach.token())
            for number in range(apps)
        ]

    @property
    def devices_there(self) -> int:
        return sum(device.online for device in self.devices)

    @property
    def apps_there(self) -> int:
        return sum(app.connected for app in self.apps)

    @property
    def keys_destroyed(self) -> int:
        return sum(device.keys_destroyed for device in self.devices)

    def complete(self) -> bool:
        """Whether everybody is there who can be."""
        return self.devices_there + self.keys_destroyed >= len(self.devices) and self.apps_there == len(
            self.apps
        )

    def back_after_s(self, since: float) -> list[float]:
        """Give after how many seconds each machine was let in for the last time."""
        return [device.opened_at[-1] - since for device in self.devices if device.opened_at[-1] > since]


@asynccontextmanager
async def switched_on(fleet: Fleet) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for device in fleet.devices:
            nursery.start_soon(device.run)
        for app in fleet.apps:
            nursery.start_soon(app.run)
        yield
        nursery.cancel_scope.cancel()


async def wait_complete(fleet: Fleet, *, within_s: float) -> bool:
    """Wait until everybody is there, and say now and then how many are."""
    began_at = line_at = trio.current_time()
    with trio.move_on_after(within_s):
        while not fleet.complete():
            await trio.sleep(LOOK_EVERY_S)
            if trio.current_time() >= line_at:
                line_at += LINE_EVERY_S
                print(
                    f"  {trio.current_time() - began_at:5.0f} s  machines {fleet.devices_there:6d}, "
                    f"apps {fleet.apps_there:5d}",
                    flush=True,
                )
        return True
    return False


async def counted(relay: Relay) -> tuple[int, int]:
    """Ask the server how many machines and apps it counts."""
    connection = await Reach(("127.0.0.1", relay.port)).connect()
    answer = await connection.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    connection.abort()
    health = json.loads(answer.body)
    return health["devices"], health["clients"]


def longest_s(devices: int, admit_rate: float) -> float:
    """Say when everybody has to be back: of a wave, all of which come at once, so many are let in."""
    waves = math.ceil(devices / admit_rate)
    return waves * (RECONNECT_S + 0.5) + SLACK_S


async def storm(relay: Relay, fleet: Fleet, kind: str, arguments: argparse.Namespace) -> bool:
    """Stop the server, start it again, and judge what becomes of the fleet; True if all is well."""
    destroyed = fleet.keys_destroyed
    print(f"\n{kind}: the server gets {STOPS[kind].name}", flush=True)
    began_at = trio.current_time()
    code = await relay.stop(STOPS[kind])
    left_s = trio.current_time() - began_at
    await trio.sleep(arguments.down_s)
    await relay.start()
    within_s = longest_s(arguments.devices, arguments.admit_rate)
    complete = await wait_complete(fleet, within_s=within_s)
    await trio.sleep(2)
    devices, apps = await counted(relay)
    back_s = fleet.back_after_s(began_at)
    print(*histogram(back_s, step_s=LINE_EVERY_S), sep="\n")
    if back_s:
        half_s, all_s = (share_back_after(back_s, share) for share in (0.5, 1.0))
        print(f"half of the machines are back after {half_s:.1f} s, the last one after {all_s:.1f} s")
    fullest, most = most_in_a_second(back_s), math.ceil(2 * arguments.admit_rate) + 1
    lost = fleet.keys_destroyed - destroyed
    return judge(
        {
            "everybody is back": (
                complete,
                f"{len(back_s)} machines, {fleet.apps_there} apps, {within_s:.0f} s",
            ),
            "keys destroyed": (lost == 0, str(lost)),
            "let in within one second": (fullest <= most, f"{fullest}, limit {most}"),
            "counted by the server": (
                (devices, apps) == (arguments.devices, arguments.apps),
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
    """Do it all; True if all is well."""
    with tempfile.TemporaryDirectory(prefix="brewos-relay-storm-") as folder:
        relay = Relay(Path(folder), admit_rate=arguments.admit_rate)
        await relay.import_machines(arguments.devices)
        await relay.start()
        fleet = Fleet(("127.0.0.1", relay.port), devices=arguments.devices, apps=arguments.apps)
        print(f"{arguments.devices} machines and {arguments.apps} apps come", flush=True)
        try:
            async with switched_on(fleet):
                if not await wait_complete(fleet, within_s=arguments.devices / 50 + 120):
                    refused = sorted({status for app in fleet.apps for _, status in app.refused})
                    there = (
                        f"{fleet.devices_there} machines, {fleet.apps_there} apps; apps refused: {refused}"
                    )
                    return judge({"everybody comes": (False, there)})
                fine = True
                for kind in arguments.stops:
                    await trio.sleep(OLD_ENOUGH_S)
                    fine = await storm(relay, fleet, kind, arguments) and fine
        finally:
            with trio.CancelScope(shield=True):
                await relay.stop(signal.SIGKILL)
        errors = relay.errors()
        return judge({"the server's log": (not errors, errors[0] if errors else "no error")}) and fine


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill a server under a fleet, and see who is back when.")
    parser.add_argument("--devices", type=int, default=2000, help="machines (default 2000)")
    parser.add_argument("--apps", type=int, default=400, help="apps (default 400)")
    parser.add_argument(
        "--admit-rate",
        type=float,
        default=Limits().admit_rate,
        help="WebSockets a second that the server looks at (default: as it comes)",
    )
    parser.add_argument("--down-s", type=float, default=1.0, help="how long it is away (default 1)")
    parser.add_argument(
        "--stops",
        type=lambda text: text.split(","),
        default=list(STOPS),
        help="kill, restart, or any row of them, as in kill,kill,restart (default kill,restart)",
    )
    chosen = parser.parse_args(given)
    if chosen.devices < 1 or chosen.apps < 0 or chosen.admit_rate <= 0 or not set(chosen.stops) <= set(STOPS):
        parser.error("--devices must be 1 at least, --apps 0, --admit-rate above 0; --stops kill or restart")
    return chosen


def main() -> int:
    arguments = parse_arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A machine has two connections after a loss.
    needed = 2 * arguments.devices + arguments.apps + SPARE_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        print(
            f"{needed} open files are needed, and ulimit -Hn is {hard}: take fewer --devices", file=sys.stderr
        )
        return 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began_s = time.monotonic()
    fine = trio.run(run, arguments)
    print(f"\n{'all is well' if fine else 'NOT WELL'}, after {time.monotonic() - began_s:.0f} s")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
