"""Tests of client.dialing: how the upgrades are asked for."""

import trio

from brewos_relay.client.dialing import dial_app, dial_device
from support.websocket_server import open_websocket_server


async def test_an_app_asks_for_its_device_with_its_token() -> None:
    with trio.fail_after(10):
        async with open_websocket_server() as (url, accepted):
            async with dial_app(url, token="a b&c", device_id="BRW-0000ABCD"):
                server = await accepted.receive()
            assert server.path == "/ws/client?token=a+b%26c&device=BRW-0000ABCD"


async def test_a_device_asks_as_machines_do() -> None:
    with trio.fail_after(10):
        async with open_websocket_server() as (url, accepted):
            async with dial_device(url, device_id="BRW-0000ABCD", key="k" * 43):
                server = await accepted.receive()
            assert server.path == f"/ws/device?id=BRW-0000ABCD&key={'k' * 43}"
            assert server.subprotocols == ("arduino",)
            assert server.headers["origin"] == "file://"
