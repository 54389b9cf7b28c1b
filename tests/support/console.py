"""A server, a simulated machine and its users, for tests of the console in a browser."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import add_user, find_user_by_email, set_admin
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.records import NewDevice, User
from brewos_relay.server.assembly import Server, open_server
from brewos_relay.settings import Settings
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.simulator.connection_policy import RICH
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.simulated_device import SimulatedDevice
from brewos_relay.simulator.usage_patterns import Barista
from brewos_relay.vocabulary import Role, now_ms
from support.chromium import Page

MACHINE: Final = "BRW-0000001A"
KEY: Final = "k" * 43
EMAIL: Final = "ada@example.org"
INVITE: Final = "invite-" + "i" * 36
DEADLINE_S: Final = 45


class Kitchen:
    """A server with one machine and its users."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self.folder = folder
        self.port = 0
        self.machine: Any = Machine(device_id=MACHINE, now_ms=now_ms)
        self._nursery = nursery
        self._running = trio.CancelScope()

    @asynccontextmanager
    async def serving(self, **changed: Any) -> AsyncIterator[Server]:
        """Run a server for a block, each time on the same port and with the same registry."""
        drain_s = changed.pop("drain_s", 0.3)
        settings = Settings(
            host="127.0.0.1",
            port=self.port,
            data_dir=self.folder,
            jwt_secret="tests-only-" + "s" * 32,
            limits=ServerLimits(device_min_age_s=0.0, drain_s=drain_s, close_s=0.3),
            **changed,
        )
        async with open_server(settings) as server:
            self.port = server.addresses[0][1]
            yield server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def switch_on(
        self, *, speed: float = 1.0, tick_s: float = 0.5, shot_every_s: float = float("inf")
    ) -> None:
        """Connect the machine. Its clock may run faster than real time."""
        self._running = trio.CancelScope()
        pauses: dict[str, Any] = {"reconnect_s": 0.5, "refused_s": 0.5, "unreachable_s": 0.5}
        simulator = SimulatedDevice(
            self.machine,
            url=self.url,
            key=KEY,
            policy=replace(RICH, tick_s=tick_s, **pauses),
            usage=Barista(shot_every_s),
            speed=speed,
        )

        async def run() -> None:
            with self._running:
                await simulator.run()

        self._nursery.start_soon(run)

    def cut(self) -> None:
        """Disconnect the machine."""
        self._running.cancel()


@asynccontextmanager
async def open_kitchen(folder: Path, *, within_s: float = DEADLINE_S) -> AsyncIterator[Kitchen]:
    """Make a kitchen. Nothing runs yet."""
    with trio.fail_after(within_s):
        async with trio.open_nursery() as nursery:
            yield Kitchen(folder, nursery)
            nursery.cancel_scope.cancel()


async def settle_in(server: Server, *, role: Role = "owner", admin: bool = False) -> User:
    """Register the machine, and give it to an invited user."""
    at_ms = now_ms()
    store = server.store
    await store.write(
        add_devices, [NewDevice(id=MACHINE, key_hash=hash_secret(KEY), name="Kitchen")], now_ms=at_ms
    )
    user = await store.write(add_user, email=EMAIL, name="Ada", now_ms=at_ms)
    await store.write(set_admin, user.id, admin)
    if role != "owner":
        await store.write(give, MACHINE, "somebody-else", role="owner", now_ms=at_ms)
    await store.write(give, MACHINE, user.id, role=role, now_ms=at_ms)
    await store.write(
        add_invite,
        email=EMAIL,
        token_hash=hash_secret(INVITE),
        is_admin=False,
        expires_at_ms=at_ms + 600_000,
        now_ms=at_ms,
    )
    return user


async def furnish(server: Server) -> None:
    """Add a second machine and more users, so that screenshots look realistic."""
    at_ms = now_ms()
    more = [NewDevice(id="BRW-12AB34CD", key_hash=hash_secret(KEY), name="Office")]
    await server.store.write(add_devices, more, now_ms=at_ms)
    roles: dict[str, Role] = {"Ben": "member", "Cleo": "viewer"}
    for name, role in roles.items():
        someone = await server.store.write(
            add_user, email=f"{name.lower()}@example.org", name=name, now_ms=at_ms
        )
        await server.store.write(give, MACHINE, someone.id, role=role, now_ms=at_ms)
    ada = await server.store.read(find_user_by_email, EMAIL)
    assert ada is not None
    await server.store.write(give, "BRW-12AB34CD", ada.id, role="owner", now_ms=at_ms)


async def sign_in(page: Page, kitchen: Kitchen, path: str = f"/machine/{MACHINE}") -> None:
    """Sign in with the invite, and open a page."""
    await page.go(f"{kitchen.url}/login?next={path}#invite={INVITE}")
    await page.press("#accept")
    await page.press("#skip")
    await page.wait_for(f"location.pathname === {path!r}")


async def brew_temp(page: Page) -> float:
    """Read the gauge of the brew boiler once it has a value."""
    shown = "document.querySelector('#gauge-brew .figure')?.textContent"
    return float(await page.wait_for(f"{shown} && Number({shown}) && {shown}"))


def complaints(page: Page, *, expected: tuple[str, ...] = ()) -> list[str]:
    return [problem for problem in page.problems if not problem.startswith(expected)]
