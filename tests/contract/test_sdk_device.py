"""The SDK's Device follows the rules between machines and a relay.

Tests are named for the rules. Rules for firmware only are left out.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.client import Device, KeyStore, LinkState, LinkStatus, RelayRefused, open_device
from brewos_relay.client.key_store import Keys
from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.wire.connection import WebSocketConnection
from support.kitchen import Kitchen, open_kitchen
from support.peers import DefectiveAudience
from support.plain_websockets import open_plain_server
from support.process import KEY, WRONG_KEY, machine_id
from support.wire_client import BINARY, packed, text

YOUNG_S = 1.0
SAFE_AGE_S = 7.9
STATE: dict[str, Any] = {
    "machine": {"state": "idle", "mode": "standby", "isHeating": False, "isBrewing": False},
    "temps": {"brew": {"current": 22.4, "setpoint": 93.0}, "group": 21.9},
    "pressure": 0.0,
    "power": {"current": 0.0, "voltage": 230.0},
}


class Watched:
    """A device, and the ends of its connections."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.opened_at: list[float] = []
        self.ends: list[LinkStatus] = []
        self.ages: list[float] = []

    async def watch(self) -> None:
        async for status in self.device.statuses():
            if status.state is LinkState.CONNECTED:
                self.opened_at.append(trio.current_time())
            elif len(self.ends) < len(self.opened_at):
                self.ends.append(status)
                self.ages.append(trio.current_time() - self.opened_at[-1])


@asynccontextmanager
async def switched_on(
    kitchen: Kitchen, folder: Path, *, number: int = 1, key: str = KEY, **options: Any
) -> AsyncIterator[Watched]:
    store = KeyStore(folder / f"{number}.json")
    store.known = Keys(key)
    url = f"http://127.0.0.1:{kitchen.here.address[1]}"
    async with (
        open_device(url, machine_id(number), store, **options) as device,
        trio.open_nursery() as nursery,
    ):
        watched = Watched(device)
        nursery.start_soon(watched.watch)
        yield watched
        assert store.known == Keys(key)
        nursery.cancel_scope.cancel()


# Rule 1: no young connection of a device ends


async def replace(kitchen: Kitchen, _: Device) -> None:
    await (await kitchen.connect_device()).show_life()


async def replace_often(kitchen: Kitchen, device: Device) -> None:
    for _ in range(5):
        await replace(kitchen, device)


async def drain(kitchen: Kitchen, _: Device) -> None:
    await kitchen.relay.drain()


async def close_it(kitchen: Kitchen, _: Device) -> None:
    for attachment in kitchen.relay.attached:
        attachment.close(4000, "the relay wants it to end")


async def meet_a_defect(kitchen: Kitchen, device: Device) -> None:
    assert kitchen.relay.set_remote_audience(machine_id(1), DefectiveAudience())
    await device.send({"type": "status"})
    await trio.sleep(0.1)


@pytest.mark.parametrize(
    "cause",
    [replace, replace_often, drain, close_it, meet_a_defect],
)
async def test_rule_1_no_young_connection_of_a_device_ends(
    autojump_clock: MockClock,
    tmp_path: Path,
    cause: Callable[[Kitchen, Device], Awaitable[None]],
) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path) as watched:
        await watched.device.wait_for_state(LinkState.CONNECTED)
        await trio.sleep(YOUNG_S)
        await cause(kitchen, watched.device)
        await trio.sleep(20)
        assert watched.ages[0] >= SAFE_AGE_S
        assert watched.ends[0].close_code is not None  # rule 4, too


# Rule 2: refusals


async def test_rule_2_refused_device_keeps_its_key_and_retries_without_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path, key=WRONG_KEY) as watched:
        waiting = await watched.device.wait_for_state(LinkState.WAITING)
        assert waiting.http_status == 401
        await trio.sleep(3600)
        assert watched.opened_at == []
        kitchen.store.keys[machine_id(1)] = WRONG_KEY
        await trio.sleep(61)
        assert watched.device.connected


async def test_rule_2_retry_after_of_a_full_relay_is_followed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_kitchen() as kitchen:
        kitchen.store.answer_s = 60
        async with switched_on(kitchen, tmp_path) as watched:
            waiting = await watched.device.wait_for_state(LinkState.WAITING)
            assert waiting.http_status == 503
            assert waiting.next_attempt_at_s is not None
            assert 5 <= waiting.next_attempt_at_s - trio.current_time() <= 7
            kitchen.store.answer_s = 0
            await trio.sleep(7)
            assert watched.device.connected


async def test_rule_2_two_devices_with_one_id_do_not_alternate(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path) as first:
        await trio.sleep(20)
        (tmp_path / "other").mkdir()
        async with switched_on(kitchen, tmp_path / "other") as second:
            await trio.sleep(600)
            assert first.device.status.state is LinkState.STOPPED
            assert first.device.status.close_code == 4002
            assert second.device.connected
            assert second.ends == []


# Rule 3: close codes


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1012, 4000, 4001, 4003])
async def test_rule_3_device_reconnects_after_any_close_code(
    autojump_clock: MockClock, tmp_path: Path, code: int
) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path) as watched:
        await trio.sleep(20)
        for attachment in kitchen.relay.attached:
            attachment.close(code, "anything")
        await trio.sleep(0.5)
        assert not kitchen.relay.attached  # it has answered the close frame
        await trio.sleep(10)
        assert watched.device.connected
        assert [end.close_code for end in watched.ends] == [code]


# Rule 4: ends have a close frame


@pytest.mark.parametrize("how", ["leave", "pause", "disable"])
async def test_rule_4_device_sends_a_close_frame(autojump_clock: MockClock, tmp_path: Path, how: str) -> None:
    async with open_kitchen() as kitchen:
        app = kitchen.app()
        async with switched_on(kitchen, tmp_path) as watched:
            await trio.sleep(20)
            assert app.shows_online()
            if how == "pause":
                watched.device.pause()
            elif how == "disable":
                watched.device.enabled = False
            if how != "leave":
                await trio.sleep(1)
                assert not app.shows_online()
        await trio.sleep(1)
        assert not app.shows_online()
        assert kitchen.counters.ended == {("device", "peer", "1000"): 1}


# Rule 5: presence


async def test_rule_5_device_is_present_from_its_first_frame(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path) as watched:
        await watched.device.wait_for_state(LinkState.CONNECTED)
        await trio.sleep(0.1)
        assert kitchen.relay.is_online(machine_id(1))


async def test_rule_5_lost_connection_leaves_no_silent_leftover(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path) as watched:
        app = kitchen.app()
        await trio.sleep(20)
        (attachment,) = (one for one in kitchen.relay.attached if isinstance(one, DeviceAttachment))
        cast(WebSocketConnection, attachment.peer)._transport.close()  # a failure of the network
        await trio.sleep(1)
        assert watched.device.status.state is LinkState.WAITING
        await app.send("command", cmd="tare")
        await trio.sleep(60)
        assert kitchen.counters.zombies == 0
        assert len(watched.opened_at) == 2
        assert app.shows_online()


async def test_rule_5_device_answers_a_state_request(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_kitchen() as kitchen:
        app = kitchen.app()
        await trio.sleep(1)
        async with switched_on(kitchen, tmp_path) as watched:
            watched.device.report(STATE)
            with trio.fail_after(5):
                assert (await anext(watched.device)).kind == "request_state"
            await trio.sleep(1)
            assert app.state["temps"]["brew"] == pytest.approx(STATE["temps"]["brew"])


# Rule 6: messages for a device


async def test_rule_6_device_understands_all_its_messages(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path) as watched:
        await trio.sleep(1)
        client = await kitchen.connect_client()
        command = b'{"type":"command","cmd":"%s"}' % (b"x" * 4069)
        await client.send(text(command))
        await client.send(packed({"type": "command", "cmd": "packed"}))
        got: list[str] = []
        with trio.fail_after(10):
            while len(got) < 2:
                told = await anext(watched.device)
                if told.kind == "command":
                    got.append(told.name[:6])
        assert got == ["xxxxxx", "packed"]
        assert watched.device.connected


@pytest.mark.parametrize(("size_bytes", "ends"), [(15_360, False), (15_361, True)])
async def test_rule_6_a_device_reads_15_kib_and_no_more(tmp_path: Path, size_bytes: int, ends: bool) -> None:
    store = KeyStore(tmp_path / "key.json")
    with trio.fail_after(10):
        async with open_plain_server() as server, open_device(server.url, machine_id(1), store) as device:
            peer = await server.accept()
            await peer.send(type="pad", pad="x" * (size_bytes - 23))
            if ends:
                with pytest.raises(Exception, match="1009"):
                    await peer.receive()
                await device.wait_for_state(LinkState.WAITING)
            else:
                assert (await anext(device)).kind == "pad"


# Rule 7: keepalives


async def test_rule_7_device_stays_connected_all_day(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path) as watched:
        await trio.sleep(6 * 3600)
        assert len(watched.opened_at) == 1
        assert watched.device.connected


# Rule 9: registration


async def test_rule_9_there_is_no_connection_before_the_registration(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    tries: list[float] = []

    async def register() -> None:
        tries.append(trio.current_time())
        if len(tries) < 4:
            raise RelayRefused(503)

    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path, register=register) as watched:
        await watched.device.wait_for_state(LinkState.CONNECTED)
        assert len(tries) == 4
        assert kitchen.counters.devices_attached == 1


# Rule 10: MessagePack


async def test_rule_10_reports_reach_apps_packed_with_rounded_numbers(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_kitchen() as kitchen, switched_on(kitchen, tmp_path) as watched:
        app, client = kitchen.app(), await kitchen.connect_client()
        watched.device.report(STATE)
        await trio.sleep(3)
        watched.device.report({**STATE, "pressure": 9.1})
        await trio.sleep(1)
        brewing = {**STATE["machine"], "state": "brewing"}
        watched.device.report({**STATE, "pressure": 9.1, "machine": brewing})
        await trio.sleep(1)
        assert {message["type"] for message in app.of_type("status", "status_delta")} == {
            "status",
            "status_delta",
        }
        assert app.state["pressure"] == pytest.approx(9.1)
        assert app.state["machine"] == brewing
        assert app.undecodable == 0
        while (found := await client.read_frame()).opcode != BINARY:
            pass
        assert b"\xca" in found.payload  # single precision
