"""The roles of a device's users, tested with faithful apps on a virtual clock."""

import time
from collections.abc import Callable
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.auth.grants import grant_of
from brewos_relay.registry.records import Access
from brewos_relay.vocabulary import Role
from support.faithful_device import FaithfulDevice
from support.kitchen import Kitchen, open_kitchen
from support.process import machine_id
from support.relay_here import token
from support.wire_client import WireClient, upgrade_head

MACHINE = machine_id(1)

# Messages of an app for a machine, by type.
MESSAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("command", {"cmd": "set_mode", "mode": "on", "strategy": 1}),
    ("command", {"cmd": "set_mode", "mode": "standby"}),
    ("command", {"cmd": "set_temp", "boiler": "brew", "temp": 99.5}),
    ("command", {"cmd": "set_bbw", "targetWeight": 36}),
    ("command", {"cmd": "tare"}),
    ("command", {"cmd": "brew_start"}),
    ("command", {"cmd": "add_schedule", "name": "Morning"}),
    ("command", {"cmd": "set_preferences", "currency": "EUR"}),
    ("backflush", {"cmd": "record_maintenance"}),
    ("getConfig", {}),
)
HOUSEHOLD_MESSAGES: Final = MESSAGES[6:8]
OWNERS_MESSAGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("command", {"cmd": "ota_start", "version": "0.9.0"}),
    ("command", {"cmd": "esp32_ota_start", "version": "0.9.0"}),
    ("command", {"cmd": "pico_ota_start", "version": "0.9.0"}),
    ("command", {"cmd": "set_cloud_config", "enabled": True, "serverUrl": "wss://other.example"}),
    ("command", {"cmd": "wifi_config", "staticIp": True}),
    ("command", {"cmd": "wifi_forget"}),
    ("command", {"cmd": "restart"}),
    ("command", {"cmd": "factory_reset"}),
    ("command", {"cmd": "mqtt_config", "enabled": True, "broker": "mqtt.example"}),
    ("command", {"cmd": "mqtt_test", "broker": "mqtt.example"}),
    ("command", {"cmd": "configure_power_meter", "source": "mqtt"}),
    ("command", {"cmd": "clear_logs"}),
    ("command", {"cmd": "new_command"}),
    ("setLogLevel", {"level": "debug"}),
    ("anything", {}),
)


def tokens_of(role: Role) -> Callable[[], str]:
    return lambda: token([MACHINE], user_id=role, role=role)


def told_by_apps(device: FaithfulDevice) -> list[object]:
    """Return the messages of apps that a machine has received, without the two of the relay itself."""
    return [
        message
        for message in device.received
        if message["type"] != "connected" and set(message) != {"type", "timestamp"}
    ]


def lend(kitchen: Kitchen, user_id: str, role: Role, *, for_s: float | None = None) -> Callable[[], str]:
    """Give a user the machine in the registry; return a function that makes their tokens."""
    until_ms = None if for_s is None else round((time.time() + for_s) * 1000)
    kitchen.store.accesses[user_id, MACHINE] = Access(
        user_id=user_id, device_id=MACHINE, role=role, until_ms=until_ms, claimed_at_ms=1
    )
    return lambda: token([], user_id=user_id)


async def test_viewer_sees_everything_an_owner_sees(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, owner = kitchen.device(), kitchen.app()
        viewer = kitchen.app(new_token=tokens_of("viewer"))
        await trio.sleep(10)
        assert viewer.state == owner.state != {}
        assert viewer.info["deviceId"] == MACHINE
        for pressure in (3.5, 6.5, 9.0):
            device.change(pressure=pressure)
            await trio.sleep(0.6)
            assert viewer.state["pressure"] == pressure
        device.change(machine={**device.state["machine"], "mode": "on"})
        await owner.send("command", cmd="set_temp", boiler="brew", temp=94.5)
        await trio.sleep(2)
        assert viewer.state == owner.state
        assert viewer.info["brewSetpoint"] == 94.5
        assert [log["message"] for log in viewer.of_type("log")] == ["set_temp"]
        device.lose_connection()
        await trio.sleep(1)
        assert viewer.shows_online() is False
        await trio.sleep(40)
        assert viewer.shows_online()
        await trio.sleep(600)
        assert (len(viewer.opened_at), viewer.toasts, viewer.undecodable) == (1, [], 0)
        assert viewer.longest_silence_s <= 7.1


async def test_viewer_cannot_send_commands(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, viewer = kitchen.device(), kitchen.app(new_token=tokens_of("viewer"))
        await trio.sleep(10)
        state, info = dict(device.state), dict(device.info)
        for message_type, payload in (*MESSAGES, *OWNERS_MESSAGES):
            await viewer.send(message_type, **payload)
            await trio.sleep(0.2)
        await trio.sleep(30)
        assert told_by_apps(device) == []
        assert (device.state, device.info) == (state, info)
        errors = viewer.of_type("error")
        assert [error["error"] for error in errors] == ["forbidden"] * len(MESSAGES + OWNERS_MESSAGES)
        assert viewer.toasts == [errors[0]["message"]] * len(errors)  # the user sees the reasons
        assert viewer.ends == []
        assert len(device.opened_at) == 1


async def test_viewer_can_request_the_state(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(10)
        viewer = kitchen.app(new_token=tokens_of("viewer"))
        await trio.sleep(3)
        assert viewer.info["deviceId"] == MACHINE
        device.seq += 7
        device.change(pressure=2.5)
        await trio.sleep(5)
        assert viewer.full_status_requests == 1
        assert viewer.state["pressure"] == 2.5
        asked = [message for message in device.received if message["type"] == "request_state"]
        assert len(asked) == 2  # on attaching, and for the gap; without bytes of the app
        assert told_by_apps(device) == []
        assert viewer.toasts == []


async def test_viewers_commands_do_not_wait_for_the_machine(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        viewer, device = kitchen.app(new_token=tokens_of("viewer")), kitchen.device(grace_s=6)
        await trio.sleep(2)
        assert viewer.toasts == []  # a request for the state of an absent machine causes no error
        await viewer.send("command", cmd="tare", requestId="r1")
        await trio.sleep(1)
        assert [error["error"] for error in viewer.of_type("error")] == ["forbidden"]
        assert [status["status"] for status in viewer.of_type("command_status")] == ["forbidden"]
        await trio.sleep(20)
        assert device.online
        assert told_by_apps(device) == []


@pytest.mark.parametrize("role", ["member", "owner"])
async def test_member_can_send_all_commands_except_owner_commands(
    autojump_clock: MockClock, role: Role
) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app(new_token=tokens_of(role))
        await trio.sleep(10)
        device.received.clear()
        for message_type, payload in (*MESSAGES, *OWNERS_MESSAGES):
            await app.send(message_type, **payload)
            await trio.sleep(0.2)
        await trio.sleep(2)
        expected = [*MESSAGES, *(OWNERS_MESSAGES if role == "owner" else ())]
        assert device.received == [
            {"type": message_type, "deviceId": MACHINE, **payload} for message_type, payload in expected
        ]
        refused = 0 if role == "owner" else len(OWNERS_MESSAGES)
        assert [error["error"] for error in app.of_type("error")] == ["forbidden"] * refused
        assert app.ends == []


async def test_guest_cannot_change_what_outlasts_the_visit(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        app = kitchen.app(new_token=lend(kitchen, "guest", "member", for_s=600))
        await trio.sleep(10)
        device.received.clear()
        for message_type, payload in (*MESSAGES, *OWNERS_MESSAGES):
            await app.send(message_type, **payload)
            await trio.sleep(0.2)
        await trio.sleep(2)
        assert told_by_apps(device) == [
            {"type": message_type, "deviceId": MACHINE, **payload}
            for message_type, payload in MESSAGES
            if (message_type, payload) not in HOUSEHOLD_MESSAGES
        ]
        refused = len(HOUSEHOLD_MESSAGES) + len(OWNERS_MESSAGES)
        assert [error["error"] for error in app.of_type("error")] == ["forbidden"] * refused
        assert app.ends == []


async def test_new_end_time_applies_at_once(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        app = kitchen.app(new_token=lend(kitchen, "bob", "member"))
        await trio.sleep(10)
        soon_ms = round((time.time() + 600) * 1000)
        for number, until_ms in enumerate((None, soon_ms, None)):
            kitchen.relay.set_grant(MACHINE, "bob", grant_of("member", user_id="bob", until_ms=until_ms))
            await app.send("command", cmd="add_schedule", name=str(number))
            await trio.sleep(1)
        assert [message["name"] for message in device.received if "name" in message] == ["0", "2"]
        assert [error["error"] for error in app.of_type("error")] == ["forbidden"]


async def test_access_until_a_time_ends_at_that_time(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        app = kitchen.app(new_token=lend(kitchen, "guest", "member", for_s=60))
        await trio.sleep(50)
        await app.send("command", cmd="tare")
        await trio.sleep(1)
        assert [message["cmd"] for message in device.received if message["type"] == "command"] == ["tare"]
        del kitchen.store.accesses["guest", MACHINE]
        await trio.sleep(60)
        [(ended_at, code), (_, last_code)] = app.ends
        assert (code, last_code) == (4003, 4002)
        assert 59.5 <= ended_at - app.opened_at[0] <= 61.5
        assert (app.gave_up, app.refused) == (True, [])
        assert kitchen.relay.client_count == 0
        assert device.ends == []


async def test_removed_access_ends_connections_and_waiting_commands(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        owner = kitchen.app(new_token=lend(kitchen, "ada", "owner"))
        app = kitchen.app(new_token=lend(kitchen, "bob", "member"))
        await trio.sleep(1)
        await app.send("command", cmd="tare")
        await trio.sleep(0.1)
        assert app.of_type("device_status")[-1]["messageQueued"] is True
        del kitchen.store.accesses["bob", MACHINE]
        kitchen.relay.set_grant(MACHINE, "bob", None)
        await app.send("command", cmd="scale_reset")
        await trio.sleep(0.9)
        assert [code for _, code in app.ends] == [4003]
        device = kitchen.device()
        await trio.sleep(10)
        assert device.online
        assert told_by_apps(device) == []
        assert owner.ends == []
        assert [code for _, code in app.ends] == [4003, 4002]
        assert (app.gave_up, app.refused) == (True, [])


async def test_tab_without_access_reconnects_when_access_is_given_back(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        kitchen.device()
        await trio.sleep(1)
        new_token = lend(kitchen, "bob", "member")
        tabs = [kitchen.page(new_token=new_token) for _ in range(3)]
        await trio.sleep(5)
        access = kitchen.store.accesses.pop(("bob", MACHINE))
        kitchen.relay.set_grant(MACHINE, "bob", None)
        await trio.sleep(600)
        for tab in tabs:
            assert [code for _, code in tab.ends] == [4003, 4002]
            assert (tab.gave_up, len(tab.opened_at), tab.refused) == (True, 2, [])
        reloaded, selecting, waiting = tabs
        reloaded.reload()
        await trio.sleep(5)
        assert [code for _, code in reloaded.ends] == [4003, 4002, 4002], "it asks once, and stops"
        kitchen.store.accesses["bob", MACHINE] = access
        reloaded.reload()
        selecting.select(machine_id(2))
        await trio.sleep(5)
        assert selecting.gave_up
        selecting.select(MACHINE)
        await trio.sleep(5)
        assert (reloaded.connected, selecting.connected, waiting.connected) == (True, True, False)
        await trio.sleep(3600)
        assert (waiting.connected, waiting.refreshes) == (True, 1)
        assert waiting.shows_online()


async def test_page_cannot_tell_an_inaccessible_device_from_an_unknown_one(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        answers = []
        for number in (2, 99):
            link = await WireClient.connect(kitchen.here.address)
            target = f"/ws/client?token={lend(kitchen, 'bob', 'member')()}&device={machine_id(number)}"
            response = await link.ask(upgrade_head(target, Origin="https://cloud.example"))
            answers.append((response.status, await link.read_close()))
            link.abort()
        assert answers == [(101, (4002, "no access to this device"))] * 2
        for number in (2, 99):  # programs get the status code
            link = await WireClient.connect(kitchen.here.address)
            target = f"/ws/client?token={lend(kitchen, 'bob', 'member')()}&device={machine_id(number)}"
            response = await link.ask(upgrade_head(target))
            assert (response.status, response.body) == (403, b'{"error": "no access to this device"}')
            link.abort()


async def test_new_role_applies_from_the_next_message(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        app = kitchen.app(new_token=lend(kitchen, "bob", "viewer"))
        await trio.sleep(10)
        for role in ("member", "viewer", "owner"):
            kitchen.relay.set_grant(MACHINE, "bob", grant_of(role, user_id="bob"))
            await app.send("command", cmd="set_eco", enabled=role)
            await app.send("command", cmd="restart", reason=role)
            await trio.sleep(1)
        assert told_by_apps(device) == [
            {"type": "command", "deviceId": MACHINE, "cmd": "set_eco", "enabled": "member"},
            {"type": "command", "deviceId": MACHINE, "cmd": "set_eco", "enabled": "owner"},
            {"type": "command", "deviceId": MACHINE, "cmd": "restart", "reason": "owner"},
        ]
        assert len(app.opened_at) == 1
        assert [error["error"] for error in app.of_type("error")] == ["forbidden"] * 3


async def test_device_id_in_a_message_is_ignored(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        mine, theirs = kitchen.device(1), kitchen.device(2)
        kitchen.app(2)
        app = kitchen.app(new_token=tokens_of("owner"))
        await trio.sleep(10)
        await app.send("command", cmd="tare", deviceId=machine_id(2))
        await app.send("request_full_status", deviceId=machine_id(2))
        await trio.sleep(1)
        assert [message["cmd"] for message in mine.received if message["type"] == "command"] == ["tare"]
        assert [message for message in theirs.received if message["type"] == "command"] == []
