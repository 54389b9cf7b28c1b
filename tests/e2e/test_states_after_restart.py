"""Fifty machines with an app each, and a server process that ends: apps show the state soon after."""

import signal
from pathlib import Path

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.vocabulary import now_ms
from support import faithful_device
from support.faithful_app import FaithfulApp
from support.faithful_device import FaithfulDevice
from support.load import measured_delay
from support.process import KEY, Reach, machine_id, serve_process
from support.waiting import until

MACHINES = 50
SAVED_WITHIN_S = 6.0
SHOWN_WITHIN_S = 2.0
SETTINGS = {
    "BREWOS_RELAY_DRAIN_S": 1,
    "BREWOS_RELAY_DEVICE_MIN_AGE_S": 0.1,
    "BREWOS_RELAY_ALLOWED_ORIGINS": "https://cloud.example",
}


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_apps_show_the_state_within_2_s_of_the_return_of_their_machines(
    tmp_path: Path, end: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faithful_device, "RECONNECT_S", 3.0)  # so that it takes less time
    monkeypatch.setattr(faithful_device, "REFUSED_S", 3.0)
    monkeypatch.setattr(faithful_device, "UNFORGIVING_S", 0.0)
    (tmp_path / "data").mkdir()
    with Database.open(f"sqlite:///{tmp_path}/data/brewos-relay.db") as database, database.writing() as db:
        ids = [machine_id(number) for number in range(MACHINES)]
        add_devices(db, [NewDevice(id=id_, key_hash=hash_secret(KEY)) for id_ in ids], now_ms=now_ms())
    with trio.fail_after(60):
        async with trio.open_nursery() as power:
            async with serve_process(tmp_path, **SETTINGS) as server:
                devices, apps = switch_on(server, power)
                await until(lambda: all(app.state_known_at is not None for app in apps))
                for device in devices:
                    device.change(machine={"state": "ready", "mode": "on"})
                await until(lambda: all(app.state["machine"]["state"] == "ready" for app in apps))
                if end == signal.SIGKILL:
                    await trio.sleep(SAVED_WITHIN_S)
                server.send_signal(end)
                await server.wait(within_s=10)
            async with measured_delay() as delay, serve_process(tmp_path, **SETTINGS) as server:
                started_at = trio.current_time()
                for device, app in zip(devices, apps, strict=True):
                    device.address = app.address = server.address
                await until(
                    lambda: all(shown_after_s(*pair) is not None for pair in zip(apps, devices, strict=True))
                )
                took_s = [shown_after_s(*pair) or 0.0 for pair in zip(apps, devices, strict=True)]
                print(f"shown after {sorted(took_s)[MACHINES // 2]:.2f} to {max(took_s):.2f} s")
                assert max(took_s) <= SHOWN_WITHIN_S + delay.since(started_at)
                assert {app.state["machine"]["state"] for app in apps} == {"ready"}
            power.cancel_scope.cancel()


def switch_on(server: Reach, power: trio.Nursery) -> tuple[list[FaithfulDevice], list[FaithfulApp]]:
    devices, apps = [], []
    for number in range(MACHINES):
        devices.append(FaithfulDevice(server.address, machine_id(number), KEY, grace_s=number / MACHINES))
        apps.append(FaithfulApp(server.address, machine_id(number), server.token))
        power.start_soon(devices[-1].run)
        power.start_soon(apps[-1].run)
    return devices, apps


def shown_after_s(app: FaithfulApp, device: FaithfulDevice) -> float | None:
    """Tell how long after both were back the app showed its machine's state; None if it does not."""
    if len(app.opened_at) < 2 or len(device.opened_at) < 2 or app.state_known_at is None:
        return None
    return app.state_known_at - max(app.opened_at[-1], device.opened_at[-1])
