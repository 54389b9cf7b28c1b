"""The web app's expectations step by step, tested with faithful apps on a virtual clock."""

import time

import pytest
import trio
from trio.testing import MockClock

from support.faithful_app import FaithfulApp
from support.kitchen import open_kitchen
from support.process import machine_id
from support.relay_here import token
from support.wire_client import packed, text

OFFLINE_ANSWER_S = 1.0


async def test_8_dashboard_live_temps(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(10)
        app = kitchen.app()
        await trio.sleep(0.01)
        assert app.state["temps"]["brew"]["current"] == pytest.approx(22.4)  # before any request
        assert app.info["deviceId"] == device.device_id
        for current in (30.5, 31.5, 32.5):
            device.change(temps={**device.state["temps"], "brew": {"current": current, "setpoint": 93.0}})
            await trio.sleep(0.55)
            assert app.state["temps"]["brew"]["current"] == current
        assert app.full_status_requests == 0
        assert app.undecodable == 0


async def test_8_dashboard_live_temps_of_a_machine_that_comes_later(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app, device = kitchen.app(), kitchen.device(grace_s=10.25)
        await trio.sleep(11.5)
        assert app.shows_online()
        assert app.state["temps"]["brew"]["setpoint"] == device.state["temps"]["brew"]["setpoint"]
        assert app.info["deviceId"] == device.device_id


async def test_8_request_state_forwarded(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(10)
        app = kitchen.app()
        await trio.sleep(1)
        assert {"type": "request_state", "deviceId": machine_id(1)} in device.received
        await app.send("backflush", cmd="record_maintenance")
        await app.send("anything")
        await trio.sleep(1)
        assert [m["type"] for m in device.received[-2:]] == ["backflush", "anything"]


async def test_8_command_reaches_device(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(10)
        sent = {"cmd": "set_temp", "boiler": "brew", "temp": 94.5}
        await app.send("command", **sent)
        await trio.sleep(0.05)
        assert device.received[-1] == {"type": "command", "deviceId": machine_id(1), **sent}
        await trio.sleep(1)
        assert app.state["temps"]["brew"]["setpoint"] == 94.5
        assert app.info["brewSetpoint"] == 94.5
        assert app.toasts == []


async def test_8_idle_no_reconnect(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(3600)
        assert len(app.opened_at) == 1
        assert app.longest_silence_s <= 7.1
        assert len(device.opened_at) == 1
        assert app.full_status_requests <= 12  # one each 5 min, after keepalives, which have a seq too


async def test_8_idle_no_reconnect_while_the_machine_is_occupied(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(21)
        device.stall(25)
        await trio.sleep(60)
        assert app.longest_silence_s <= 7.1
        assert app.ends == []


async def test_8_device_offline_overlay(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(20)
        assert app.shows_online()
        device.lose_connection()
        await trio.sleep(0.1)
        assert app.shows_online() is False
        assert len(app.of_type("device_offline")) == 1


async def test_8_idle_while_offline_no_reconnect(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app = kitchen.app()
        await trio.sleep(600)
        assert app.shows_online() is False
        assert len(app.opened_at) == 1
        assert app.longest_silence_s <= 7.1
        assert app.toasts == []  # the app requests the state of an absent machine
        assert app.of_type("device_status")[0]["online"] is False


async def test_8_device_back_online(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(20)
        device.lose_connection()
        device.change(pressure=5.5)
        await trio.sleep(33)
        assert app.shows_online()
        assert app.state["pressure"] == 5.5
        assert app.state_known_at is not None
        assert app.state_known_at - device.opened_at[1] <= 2
        assert [m["type"] for m in app.of_type("device_offline", "device_online")][-2:] == [
            "device_offline",
            "device_online",
        ]
        assert len(app.opened_at) == 1


async def test_8_reload_second_client(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(10)
        device.change(pressure=4.5)
        await trio.sleep(1)
        apps = [kitchen.app() for _ in range(5)]
        await trio.sleep(0.05)
        assert [app.state["pressure"] for app in apps] == [4.5] * 5
        device.change(pressure=3.5)
        await trio.sleep(1)
        assert [app.state["pressure"] for app in apps] == [3.5] * 5
        assert [app.full_status_requests for app in apps] == [0] * 5  # seq continues from the snapshot


async def test_8_reload_while_the_machine_is_away(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(20)
        device.lose_connection()
        await trio.sleep(10)
        app = kitchen.app()
        await trio.sleep(0.05)
        status = app.of_type("device_status")[0]
        assert status["online"] is False
        assert status["lastSeen"]
        assert 10_000 <= status["snapshotAgeMs"] <= 31_000
        assert app.state["temps"]["brew"]["setpoint"] == 93.0
        assert app.shows_online() is False


async def test_8_app_closes_with_1000(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app = kitchen.app()
        await trio.sleep(5)
        await app.leave()
        await trio.sleep(60)
        assert [code for _, code in app.ends] == [1000]
        assert app.gave_up
        assert kitchen.relay.client_count == 0


async def test_8_ws_refusals(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        forged = kitchen.app(new_token=lambda: "forged")
        stranger = kitchen.app(new_token=lambda: token([machine_id(2)]))
        await trio.sleep(60)
        assert [code for _, code in forged.ends] == [4002]
        assert forged.gave_up
        assert [code for _, code in stranger.ends] == [4002]
        assert (stranger.gave_up, stranger.refused) == (True, [])


# §2: other expectations


async def test_2_1_a_gap_costs_one_request_for_each_app(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(10)
        device.seq += 7
        device.change(pressure=2.5)
        await trio.sleep(30)
        assert app.full_status_requests == 1
        assert app.state["pressure"] == 2.5


async def test_2_2_expiring_token_is_renewed(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app = kitchen.app(new_token=lambda: token(ttl_s=3600))
        await trio.sleep(3000)
        assert app.of_type("token_expiring") == []
        await trio.sleep(2000)
        [expiring] = app.of_type("token_expiring")
        assert 298 <= expiring["expiresIn"] <= 300
        assert [m["success"] for m in app.of_type("auth_refreshed")] == [True]
        assert app.ends == []


async def test_2_2_expired_token_closes_the_connection(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    began_s = time.time()
    monkeypatch.setattr(time, "time", lambda: began_s + trio.current_time())
    tokens = [token(ttl_s=900)] * 3  # a browser with a slow clock sends the same token again
    async with open_kitchen() as kitchen:
        app = kitchen.app(new_token=tokens.pop)
        await trio.sleep(1000)
        [(ended_at, code)] = app.ends
        assert code == 4002
        assert 898 <= ended_at - app.opened_at[0] <= 902
        assert app.gave_up
        assert len(app.of_type("token_expiring")) == 1  # only once


async def test_2_2_nearly_expired_token_is_announced_at_once(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app = FaithfulApp(kitchen.here.address, machine_id(1), lambda: token(ttl_s=60))
        kitchen.nursery.start_soon(app.run)
        await trio.sleep(2)
        assert 57 <= app.of_type("token_expiring")[0]["expiresIn"] <= 60


async def test_2_2_another_users_token_is_rejected(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app = kitchen.app(new_token=lambda: token(ttl_s=900))
        await trio.sleep(1)
        await app.send("refresh_auth", token=token(user_id="eve"))
        await trio.sleep(1)
        [refreshed] = app.of_type("auth_refreshed")
        assert refreshed["success"] is False
        assert refreshed["error"]


@pytest.mark.parametrize("encode", [text, packed])
async def test_3_ping_and_metrics_are_answered_by_the_relay(
    autojump_clock: MockClock, encode: type[object]
) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(5)
        app = kitchen.app()
        await trio.sleep(1)
        sent_ms = round(time.time() * 1000)
        await app.send("ping", timestamp=sent_ms)
        await app.send("get_metrics")
        await trio.sleep(0.1)
        [pong], [metrics] = app.of_type("pong"), app.of_type("metrics")
        assert pong["clientTimestamp"] == sent_ms
        assert metrics["deviceOnline"] is True
        assert not {"ping", "get_metrics"} & {message["type"] for message in device.received}


# §3: commands for an absent machine


async def test_3_a_harmless_command_waits_for_the_machine(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app, device = kitchen.app(), kitchen.device(grace_s=8)
        await trio.sleep(1)
        await app.send("command", cmd="tare")
        await trio.sleep(OFFLINE_ANSWER_S)
        queued = app.of_type("device_status")[-1]
        assert (queued["messageQueued"], queued["queuedMessages"], queued["queueTTL"]) == (True, 1, 10_000)
        await trio.sleep(8)
        assert [m["cmd"] for m in device.received if m["type"] == "command"] == ["tare"]
        assert [m["messageType"] for m in app.of_type("queued_message_sent")] == ["command"]
        assert app.toasts == []


async def test_3_command_that_waits_too_long_expires(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app, device = kitchen.app(), kitchen.device(grace_s=20)
        await trio.sleep(1)
        await app.send("command", cmd="tare")
        await trio.sleep(12)
        assert [m["error"] for m in app.of_type("error")] == ["device_offline"]
        await trio.sleep(20)
        assert [m for m in device.received if m["type"] == "command"] == []


@pytest.mark.parametrize(
    "command",
    [
        {"cmd": "set_mode", "mode": "on"},
        {"cmd": "enter_eco"},
        {"cmd": "mqtt_config", "broker": "mqtt.example"},
        {"cmd": "new_command"},
        {"cmd": "brew_start"},
        {"cmd": "ota_start"},
        {"cmd": "restart"},
        {"cmd": "factory_reset"},
        {"cmd": "wifi_forget"},
        {"cmd": "set_cloud_config", "enabled": False},
    ],
)
async def test_3_harmful_commands_never_wait(autojump_clock: MockClock, command: dict[str, object]) -> None:
    async with open_kitchen() as kitchen:
        app, device = kitchen.app(), kitchen.device(grace_s=5)
        await trio.sleep(1)
        await app.send("command", **command)
        await trio.sleep(OFFLINE_ANSWER_S)
        assert [m["error"] for m in app.of_type("error")] == ["device_offline"]
        await trio.sleep(20)
        assert device.online
        assert [m for m in device.received if m["type"] == "command"] == []
