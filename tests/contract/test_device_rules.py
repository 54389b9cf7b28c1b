"""The rules that the firmware imposes, tested with faithful machines on a virtual clock.

Tests are named after the rules. Those of frames and headers are with the tests of the frames.
"""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from support.faithful_device import RECONNECT_S, FaithfulDevice
from support.kitchen import Kitchen, open_kitchen
from support.peers import DefectiveAudience
from support.process import WRONG_KEY, machine_id
from support.wire_client import CONTINUATION, TEXT, frame, packed, text

YOUNG_S = 1.0
SAFE_AGE_S = 7.9
"""A machine's clock starts some turns after the relay's."""


def ages(device: FaithfulDevice) -> list[float]:
    """Return the lengths of its connections in s."""
    return [ended - opened for opened, ended in zip(device.opened_at, device.ended_at, strict=False)]


# Rule 1: no young connection of a machine ends


async def replace(kitchen: Kitchen, _device: FaithfulDevice) -> None:
    await (await kitchen.connect_device()).show_life()


async def replace_often(kitchen: Kitchen, device: FaithfulDevice) -> None:
    for _ in range(5):
        await replace(kitchen, device)


async def drain(kitchen: Kitchen, _device: FaithfulDevice) -> None:
    await kitchen.relay.drain()


async def break_the_rules(_kitchen: Kitchen, device: FaithfulDevice) -> None:
    await device.send(0x3, b"")


async def send_bad_text(_kitchen: Kitchen, device: FaithfulDevice) -> None:
    await device.send(TEXT, b"\xff")


async def close_it(kitchen: Kitchen, _device: FaithfulDevice) -> None:
    for attachment in kitchen.relay.attached:
        attachment.close(4000, "the relay wants it to end")


async def meet_a_defect(kitchen: Kitchen, device: FaithfulDevice) -> None:
    assert kitchen.relay.set_remote_audience(machine_id(1), DefectiveAudience())
    await device.send_text({"type": "status"})
    await trio.sleep(0.1)


CAUSES = [
    replace,
    replace_often,
    drain,
    break_the_rules,
    send_bad_text,
    close_it,
    meet_a_defect,
]


@pytest.mark.parametrize("cause", CAUSES)
async def test_rule_1_no_young_connection_of_a_machine_ends(
    autojump_clock: MockClock,
    cause: Callable[[Kitchen, FaithfulDevice], Awaitable[None]],
) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(YOUNG_S)
        await cause(kitchen, device)
        await trio.sleep(20)
        assert ages(device)[0] >= SAFE_AGE_S
        assert device.ends == ["closed"]  # rule 4, too


async def test_rule_1_an_oversized_message_of_an_app_does_not_reach_a_young_machine(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(YOUNG_S)
        hostile = await kitchen.connect_client()
        await hostile.send(text({"type": "command", "pad": "x" * 16_000}))
        assert (await hostile.read_close())[0] == 1009
        await trio.sleep(20)
        assert device.ends == []


async def test_rule_1_drain_waits_for_a_young_machine(autojump_clock: MockClock) -> None:
    async with open_kitchen(drain_s=0) as kitchen:
        old = kitchen.device(1)
        await trio.sleep(9)
        young = kitchen.device(2)
        await trio.sleep(YOUNG_S)
        await kitchen.relay.drain()
        await trio.sleep(0.1)
        assert ages(old)[0] < 12
        assert ages(young)[0] >= SAFE_AGE_S


# Rule 2: refusals


async def test_rule_2_refused_machine_keeps_its_key_and_retries_without_end(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device(key=WRONG_KEY)
        await trio.sleep(300)
        assert {status for _, status in device.refused} == {401}
        assert len(device.refused) == 10
        assert (device.requests, device.hasty) == (10, 0)  # one request for each attempt
        kitchen.store.keys[device.device_id] = WRONG_KEY
        await trio.sleep(31)
        assert device.online


async def test_rule_2_a_contested_id_is_refused_before_the_upgrade(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        twins = [kitchen.device(grace_s=grace_s) for grace_s in (0, 15)]
        app = kitchen.app()
        await trio.sleep(600)
        assert kitchen.counters.conflicts > 5
        assert {status for twin in twins for _, status in twin.refused} == {409}
        assert sum(twin.online for twin in twins) == 1
        assert sum(len(twin.ends) for twin in twins) <= 6  # at most three swaps in 5 min
        assert app.shows_online()


# Rule 3: close codes


async def test_rule_3_any_close_code_of_the_answer_is_accepted(autojump_clock: MockClock) -> None:
    async with open_kitchen(close_s=5.0) as kitchen:
        device = kitchen.device()
        await trio.sleep(20)
        for attachment in kitchen.relay.attached:
            attachment.close(4003, "anything")
        await trio.sleep(0.1)
        assert device.ends == ["closed"]
        assert not kitchen.relay.attached  # does not wait for the same code from the machine
        await trio.sleep(RECONNECT_S + 1)
        assert device.online


# Rule 4: ends have a close frame (see rule 1, too)


async def test_rule_4_a_silent_machine_is_sent_a_close_frame(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(60)
        device.stall(60)
        await trio.sleep(65)
        assert device.ends == ["closed"]
        assert device.zombies == 0
        await trio.sleep(RECONNECT_S)
        assert kitchen.relay.is_online(device.device_id)


async def test_rule_4_a_machine_that_closes_is_answered(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = await kitchen.connect_device()
        await device.show_life()
        await device.send(frame(0x8, (1000).to_bytes(2, "big")))
        assert (await device.read_close())[0] == 1000
        assert await device.read_to_end() == b""


# Rule 5: presence


async def test_rule_5_silent_leftover_connection_is_not_present_and_is_dropped(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(20)
        device.lose_connection()
        await trio.sleep(5)
        assert device.zombies == 1
        assert not kitchen.relay.is_online(device.device_id)
        assert app.shows_online() is False
        await app.send("command", cmd="tare")
        await trio.sleep(8)
        assert kitchen.counters.zombies == 1
        assert not any(message.get("cmd") == "tare" for message in device.received)
        await trio.sleep(20)
        assert app.shows_online()
        assert device.online
        assert not any(message.get("cmd") == "tare" for message in device.received)


async def test_rule_5_silent_leftover_connection_does_not_replace_a_live_machine(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(20)
        app.received.clear()
        zombie = await kitchen.connect_device()
        await trio.sleep(5)
        await app.send("command", cmd="tare")
        assert (await zombie.read_json())["type"] == "connected"  # the only message to it
        assert (await zombie.read_close())[0]
        await trio.sleep(60)
        assert device.ends == []
        assert [m["cmd"] for m in device.received if m["type"] == "command"] == ["tare"]
        assert app.of_type("device_offline", "device_online") == []


async def test_rule_5_a_machine_that_only_listens_is_present_by_its_pong(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = await kitchen.connect_device()
        assert not kitchen.relay.is_online(machine_id(1))
        assert (await device.read_json())["type"] == "connected"
        ping = await device.read_frame()
        await device.send(frame(0xA, ping.payload))
        await trio.sleep(0.01)
        assert kitchen.relay.is_online(machine_id(1))


async def test_rule_5_state_is_requested_when_a_machine_arrives_and_apps_are_attached(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        kitchen.app(1)
        watched, unwatched = kitchen.device(1, grace_s=5), kitchen.device(2, grace_s=5)
        await trio.sleep(7)
        assert [message["type"] for message in watched.received] == ["connected", "request_state"]
        assert [message["type"] for message in unwatched.received] == ["connected"]


# Rule 6: messages for a machine


async def test_rule_6_machine_understands_all_its_messages(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(1)
        client = await kitchen.connect_client()
        command = b'{"type":"command","cmd":"%s"}' % (b"x" * 4069)
        assert len(command) == 4096
        await client.send(text(command))
        await client.send(frame(TEXT, command[:9], fin=False), frame(CONTINUATION, command[9:]))
        await client.send(packed({"type": "command", "cmd": "packed"}))
        await trio.sleep(1)
        assert [m["cmd"][:6] for m in device.received if "cmd" in m] == ["xxxxxx", "xxxxxx", "packed"]
        assert device.ignored == []
        assert device.largest_bytes == 4096
        assert device.online


# Rule 7: response times


async def test_rule_7_a_slow_registry_means_503_before_the_machine_gives_up(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        kitchen.store.answer_s = 60
        device = kitchen.device()
        await trio.sleep(100)
        assert {status for _, status in device.refused} == {503}
        assert device.unanswered == 0
        kitchen.store.answer_s = 3
        await trio.sleep(50)
        assert device.online


async def test_rule_7_pings_are_answered_all_day(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(6 * 3600)
        assert len(device.opened_at) == 1
        assert device.ends == []


# Rule 8: the answer to the upgrade, which faithful machines check


async def test_rule_8_a_faithful_machine_accepts_the_answer(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device(grace_s=10.25)
        await trio.sleep(10.5)
        assert device.online
        assert (device.refused, device.unanswered) == ([], 0)


# Rule 10: MessagePack


async def test_rule_10_packed_status_reaches_apps_unchanged(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(3.5)
        device.change(pressure=9.1, power={"current": 1450, "voltage": 230})
        await trio.sleep(1)
        device.change(machine={"state": "brewing", "mode": "on", "isHeating": True, "isBrewing": True})
        await trio.sleep(1)
        assert [m["type"] for m in app.of_type("status", "status_delta")] == [
            "status",
            "status_delta",
            "status",
        ]
        assert app.state["pressure"] == pytest.approx(9.1)
        assert app.state["machine"] == device.state["machine"]
        assert app.undecodable == 0
        assert app.full_status_requests == 0
