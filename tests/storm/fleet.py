"""The machines and apps that reconnect."""

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from support.faithful_app import FaithfulApp
from support.faithful_device import UNFORGIVING_S, FaithfulDevice
from support.process import KEY, Reach, machine_id

SPREAD_S: Final = 10.0
"""The time to switch on each thousand machines."""
LOOK_EVERY_S: Final = 0.25
LINE_EVERY_S: Final = 5.0


class Fleet:
    """All machines and apps."""

    def __init__(
        self, address: tuple[str, int], *, devices: int, apps: int, tls_context: ssl.SSLContext | None
    ) -> None:
        self._chance = random.Random(7)
        self._address, self._tls_context = address, tls_context
        reach = Reach(address)
        spread_s = SPREAD_S * max(devices, 500) / 1000
        self.devices = [self._device(number, spread_s) for number in range(devices)]
        self.apps = [
            FaithfulApp(address, machine_id(number % devices), lambda: reach.token())
            for number in range(apps)
        ]
        for app in self.apps:
            app.tls_context = tls_context

    def add_devices(self, count: int, *, within_s: float) -> list[FaithfulDevice]:
        """Return new machines to switch on; each connects within that time."""
        number = len(self.devices)
        added = [self._device(number + more, within_s) for more in range(count)]
        self.devices += added
        return added

    def _device(self, number: int, within_s: float) -> FaithfulDevice:
        grace_s = self._chance.uniform(0, within_s)
        device = FaithfulDevice(self._address, machine_id(number), KEY, grace_s=grace_s)
        device.tls_context = self._tls_context
        return device

    @property
    def young(self) -> int:
        """The number of machines that may lose their key if connections end now.

        Some of them have not read their 101 yet.
        """
        youngest = trio.current_time() - UNFORGIVING_S
        return sum(
            not device.keys_destroyed and not (device.online and device.opened_at[-1] <= youngest)
            for device in self.devices
        )

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
        """Whether all apps, and all machines that have their key, are attached."""
        return self.devices_there + self.keys_destroyed >= len(self.devices) and self.apps_there == len(
            self.apps
        )

    def back_after_s(self, since: float) -> list[float]:
        """Return after how many seconds each machine was last admitted."""
        last = [device.opened_at[-1] for device in self.devices if device.opened_at]
        return [at - since for at in last if at > since]


@asynccontextmanager
async def switched_on(fleet: Fleet) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        for device in fleet.devices:
            nursery.start_soon(device.run)
        for app in fleet.apps:
            nursery.start_soon(app.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def wait_complete(fleet: Fleet, *, within_s: float) -> tuple[bool, float]:
    """Wait until all peers are attached, and print their number now and then.

    Return whether all are attached, and the longest delay of this process: its times of admissions may be
    late by as much.
    """
    began_at = line_at = trio.current_time()
    late_s = 0.0
    with trio.move_on_after(within_s):
        while not fleet.complete():
            looked_at = trio.current_time()
            await trio.sleep(LOOK_EVERY_S)
            late_s = max(late_s, trio.current_time() - looked_at - LOOK_EVERY_S)
            if trio.current_time() >= line_at:
                line_at += LINE_EVERY_S
                print(
                    f"  {trio.current_time() - began_at:5.0f} s  machines {fleet.devices_there:6d}, "
                    f"apps {fleet.apps_there:5d}",
                    flush=True,
                )
        return True, late_s
    return False, late_s
