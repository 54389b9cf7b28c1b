"""Further rules of the firmware, tested with faithful machines on a virtual clock."""

import itertools

import pytest
import trio
from trio.testing import MockClock

from support.faithful_device import RECONNECT_S
from support.kitchen import open_kitchen
from support.process import KEY
from support.wire_client import BINARY, TEXT, frame


async def test_8_closing_is_spread_and_skips_the_young(autojump_clock: MockClock) -> None:
    async with open_kitchen(drain_s=20) as kitchen:
        devices = [kitchen.device(n, grace_s=n / 10) for n in range(1, 10)]
        await trio.sleep(15)
        young = devices[0]
        young.lose_connection()
        began_at = trio.current_time()
        await kitchen.relay.drain()
        await trio.sleep(0.1)
        ended_s = sorted(device.ended_at[-1] - began_at for device in devices[1:])
        gaps_s = [later - earlier for earlier, later in itertools.pairwise(ended_s)]
        assert max(gaps_s) < 4
        assert 14 < ended_s[-1] - ended_s[0] <= 20
        assert {device.ends[-1] for device in devices[1:]} == {"closed"}


@pytest.mark.parametrize("stall_s", [10, 28])
async def test_8_busy_machine_is_not_disconnected(autojump_clock: MockClock, stall_s: float) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(21)
        device.stall(stall_s)
        await trio.sleep(100)
        assert device.ends == []
        assert app.ends == []


async def test_8_machine_busy_for_a_minute_keeps_its_key_and_reconnects(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        device, app = kitchen.device(), kitchen.app()
        await trio.sleep(21)
        device.stall(60)
        await trio.sleep(60 + RECONNECT_S + 5)
        assert device.ends == ["closed"]
        assert device.online
        assert app.shows_online()
        assert app.ends == []


async def test_8_many_state_requests_reach_the_machine_as_one(
    autojump_clock: MockClock,
) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(10)
        apps = [kitchen.app() for _ in range(30)]
        await trio.sleep(1)
        assert [m["type"] for m in device.received].count("request_state") == 1
        device.seq += 3  # a browser in the local network received some
        device.change(pressure=1.0)
        await trio.sleep(1)
        assert [app.full_status_requests for app in apps] == [1] * 30
        assert [m["type"] for m in device.received].count("request_full_status") == 1
        assert all(app.of_type("device_info") for app in apps)


async def test_8_machine_with_an_unknown_key_never_gets_a_101(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        stranger = kitchen.device(0xFFFF, key=KEY)
        await trio.sleep(100)
        assert stranger.opened_at == []
        assert {status for _, status in stranger.refused} == {401}


async def test_8_two_segments_of_a_large_text_arrive_as_one(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        app = kitchen.app()
        device = await kitchen.connect_device()
        await device.show_life()
        payload = b'{"type":"log","level":"info","message":"%s"}' % (b"x" * 2000)
        whole = frame(TEXT, payload, mask=bytes(4))
        await device.send(whole[:8])
        await trio.sleep(0.2)
        await device.send(whole[8:], frame(BINARY, b"\x81\xa4type\xa1x", mask=bytes(4)))
        await trio.sleep(0.1)
        assert [len(m["message"]) for m in app.of_type("log")] == [2000]
        assert app.undecodable == 0
