"""Replace three instances behind a load balancer, under a fleet of machines and apps.

With `surge`, all replacements are ready before the balancer sends new connections only to them, and the old
instances are stopped. `in-place` stops each instance before its replacement starts.

Exit codes: 0 all checks passed, 1 a check failed, 2 wrong usage.
"""

import argparse
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))  # this is run by its path

from storm.fleet import Fleet, switched_on, wait_complete
from support.balancer import Balancer, open_balancer
from support.cluster import register_machines, serve_instance
from support.faithful_app import FaithfulApp
from support.logs import errors_in
from support.postgresql import open_postgresql
from support.process import ProcessServer
from support.redis_server import open_redis

KINDS: Final = ("surge", "in-place")
INSTANCES: Final = 3
LIVE_S: Final = 2.0
"""How long all peers live before the deployment, which finds some machines young."""
SETPOINTS: Final = {"surge": 94.0, "in-place": 95.0}


@dataclass(frozen=True)
class Place:
    """What the instances share, and their settings."""

    folder: Path
    bus: str
    database_url: str
    drain_s: float


class Deployment:
    """The instances behind the balancer."""

    def __init__(self, place: Place, balancer: Balancer, stack: AsyncExitStack) -> None:
        self._place = place
        self._balancer = balancer
        self._stack = stack
        self.instances: list[ProcessServer] = []
        self.all: list[ProcessServer] = []
        self.codes: list[int] = []
        """The exit codes of the instances that were stopped."""

    async def start(self) -> ProcessServer:
        """Start an instance, and wait until the balancer uses it."""
        place = self._place
        instance = await self._stack.enter_async_context(
            serve_instance(
                place.folder,
                place.bus,
                database_url=place.database_url,
                BREWOS_RELAY_ALLOWED_ORIGINS="https://cloud.example",
                BREWOS_RELAY_DEVICE_MIN_AGE_S=8,
                BREWOS_RELAY_DRAIN_S=place.drain_s,
                BREWOS_RELAY_LOG_LEVEL="warning",
            )
        )
        self.instances.append(instance)
        self.all.append(instance)
        self._balancer.add(instance.address)
        await self._balancer.wait_ready(instance.address)
        return instance

    async def stop(self, instance: ProcessServer) -> None:
        """Let an instance drain, and wait for its end."""
        self.instances.remove(instance)
        instance.send_signal(signal.SIGTERM)
        self.codes.append(await instance.wait(within_s=self._place.drain_s + 30))

    async def surge(self) -> None:
        """Start all replacements, send new connections only to them, and stop the old instances.

        **Owns:** a nursery with a task for each instance that is stopped.
        """
        old = list(self.instances)
        for _ in old:
            await self.start()
        for instance in old:
            self._balancer.remove(instance.address)
        async with trio.open_nursery() as nursery:
            for instance in old:
                nursery.start_soon(self.stop, instance)

    async def replace_in_place(self) -> None:
        """Stop one instance after the other. Each replacement is ready before the next one is stopped."""
        for instance in list(self.instances):
            await self.stop(instance)
            self._balancer.remove(instance.address)
            await self.start()


@dataclass(frozen=True)
class Outcome:
    """What a deployment did to the peers."""

    took_s: float
    complete: bool
    keys_destroyed: int
    disconnections: Counter[int]
    """Of the machines: how many of them were disconnected how often."""
    machine_ends: Counter[str]
    app_ends: Counter[int]
    app_absence_s: float
    """The longest time that an app was not connected."""
    unserved: list[str]
    """The apps whose command did not arrive, or that did not see its effect."""
    codes: list[int]
    errors: list[str]

    def problems(self, kind: str) -> list[str]:
        """List what went wrong, for this kind of deployment."""
        most = 1 if kind == "surge" else INSTANCES
        found = {
            "not all peers are back": not self.complete,
            f"{self.keys_destroyed} keys were destroyed": self.keys_destroyed > 0,
            f"machines were disconnected {dict(self.disconnections)} times": max(self.disconnections) > most,
            f"machines' connections ended as {dict(self.machine_ends)}": set(self.machine_ends) > {"closed"},
            f"connections of apps ended with {dict(self.app_ends)}": bool(set(self.app_ends) - {1012}),
            f"an app was away for {self.app_absence_s:.1f} s": self.app_absence_s > MOST_ABSENCE_S,
            f"commands of apps for {self.unserved} had no effect": bool(self.unserved),
            f"the instances ended with {self.codes}": set(self.codes) != {0} or len(self.codes) != INSTANCES,
            f"the log has errors: {self.errors[:3]}": bool(self.errors),
        }
        return [problem for problem, is_one in found.items() if is_one]


MOST_ABSENCE_S: Final = 10.0
"""An app waits for 1 s, then twice as long each time up to 5 s, if it is refused."""


@asynccontextmanager
async def deployed(place: Place, *, machines: int, apps: int) -> AsyncIterator[tuple[Deployment, Fleet]]:
    """Start the instances, and switch on machines and apps that connect to them."""
    register_machines(place.folder, range(machines), database_url=place.database_url)
    async with AsyncExitStack() as stack:
        balancer = await stack.enter_async_context(open_balancer())
        deployment = Deployment(place, balancer, stack)
        for _ in range(INSTANCES):
            await deployment.start()
        fleet = Fleet(balancer.address, devices=machines, apps=apps, tls_context=None)
        await stack.enter_async_context(switched_on(fleet))
        yield deployment, fleet


async def roll(place: Place, kind: str, *, machines: int, apps: int, back_within_s: float) -> Outcome:
    """Deploy once. Return the effects on the peers."""
    async with deployed(place, machines=machines, apps=apps) as (deployment, fleet):
        complete, _ = await wait_complete(fleet, within_s=60 + machines / 20)
        if not complete:
            refused = Counter(status for device in fleet.devices for _, status in device.refused)
            raise AssertionError(
                f"only {fleet.devices_there} machines and {fleet.apps_there} apps could connect;"
                f" machines were refused: {dict(refused)}"
            )
        await trio.sleep(LIVE_S)
        began_at = trio.current_time()
        await (deployment.surge() if kind == "surge" else deployment.replace_in_place())
        took_s = trio.current_time() - began_at
        await trio.sleep(1)  # the last machines may not have read the end of their connection
        complete, _ = await wait_complete(fleet, within_s=back_within_s)
        unserved = await find_unserved(fleet, SETPOINTS[kind])
        return Outcome(
            took_s=took_s,
            complete=complete,
            keys_destroyed=fleet.keys_destroyed,
            disconnections=Counter(len(device.ends) for device in fleet.devices),
            machine_ends=Counter(end for device in fleet.devices for end in device.ends),
            app_ends=Counter(code for app in fleet.apps for _, code in app.ends),
            app_absence_s=max((absence_s(app) for app in fleet.apps), default=0.0),
            unserved=unserved,
            codes=deployment.codes,
            errors=[line for each in deployment.all for line in errors_in(each.log_file.read_text())],
        )


def absence_s(app: FaithfulApp) -> float:
    """Return the longest time that an app was not connected."""
    back_at = [*app.opened_at[1:], trio.current_time()]
    return max((back - end for (end, _), back in zip(app.ends, back_at, strict=False)), default=0.0)


async def find_unserved(fleet: Fleet, setpoint: float) -> list[str]:
    """Let each app set a temperature. Return the machines whose apps do not show it soon."""
    for app in fleet.apps:
        await app.send("command", cmd="set_temp", boiler="brew", temp=setpoint)

    def waiting() -> list[str]:
        return [
            app.device_id
            for app in fleet.apps
            if app.state.get("temps", {}).get("brew", {}).get("setpoint") != setpoint
        ]

    with trio.move_on_after(5):
        while waiting():  # noqa: ASYNC110 - apps have no event
            await trio.sleep(0.05)
    return waiting()


def main() -> int:
    parser = argparse.ArgumentParser(description="Replace three instances under a fleet.")
    parser.add_argument("--machines", type=int, default=500, help="machines (default 500)")
    parser.add_argument("--apps", type=int, default=100, help="apps (default 100)")
    parser.add_argument("--drain-s", type=float, default=20.0, help="s to drain an instance (default 20)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="surge or in-place (default both)")
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fine = True
    with open_redis() as redis, open_postgresql() as postgresql:
        for kind in chosen.kind or KINDS:
            print(
                f"{kind}: {INSTANCES} instances, {chosen.machines} machines and {chosen.apps} apps",
                flush=True,
            )
            began_s = time.monotonic()
            redis.flush()
            with postgresql.new_database() as url, tempfile.TemporaryDirectory() as folder:
                place = Place(Path(folder), redis.url, url, chosen.drain_s)
                outcome = trio.run(_roll, place, kind, chosen.machines, chosen.apps)
            print(
                f"  deployed in {outcome.took_s:.1f} s; machines were disconnected"
                f" {dict(outcome.disconnections)} times, {outcome.keys_destroyed} keys destroyed;"
                f" an app was away for up to {outcome.app_absence_s:.1f} s;"
                f" {time.monotonic() - began_s:.0f} s in all"
            )
            for problem in (problems := outcome.problems(kind)):
                print(f"  FAILED: {problem}")
            fine = fine and not problems
    print("all checks passed" if fine else "FAILED")
    return 0 if fine else 1


async def _roll(place: Place, kind: str, machines: int, apps: int) -> Outcome:
    return await roll(place, kind, machines=machines, apps=apps, back_within_s=90.0)


if __name__ == "__main__":
    sys.exit(main())
