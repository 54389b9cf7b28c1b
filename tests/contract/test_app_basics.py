"""The web app's expectations of a relay; tests are named for sections of the app contract."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.auth.tokens import KeyRing
from support.process import (
    HereServer,
    ProcessServer,
    Reach,
    machine_id,
    run_command,
    serve_here,
    serve_process,
)
from support.wire_client import CLOSE, Ended, Response, WireClient, close, packed, text, upgrade_head

MACHINE = machine_id(1)
OTHER = machine_id(2)
DEVICE_KEY = "f" * 43


def target(token: str, device_id: str = MACHINE, *, path: str = "/ws/client") -> str:
    return f"{path}?token={token}&device={device_id}"


async def ask(server: Reach, path: str) -> tuple[WireClient, Response]:
    connection = await server.connect()
    return connection, await connection.ask(
        upgrade_head(
            path,
            Host="relay.example",
            Origin="https://relay.example",
            Sec_WebSocket_Extensions="permessage-deflate",
        )
    )


# §0.5, §2.4: refusals


def bad_tokens() -> dict[str, str]:
    signer = Reach(("", 0)).signer
    good = signer.issue(user_id="ada", email="a@example.org", devices="*")
    past_s = int(time.time()) - 10_000
    return {
        "no token at all": "x",
        "not base64": "a.b.c",
        "expired": signer.issue(user_id="ada", email="a@b.c", devices="*", ttl_s=60, now_s=past_s),
        "of another secret": KeyRing(["another " * 8]).issue(user_id="ada", email="a@b.c", devices="*"),
        "unsigned": "eyJhbGciOiJub25lIn0." + good.split(".")[1] + ".",
        "changed": good[:-8] + ("A" if good[-8] != "A" else "B") + good[-7:],
        "cut off": good[:-1],
        "long": "x" * 6000,
    }


@pytest.mark.parametrize("token", bad_tokens().values(), ids=bad_tokens())
@pytest.mark.parametrize("path", ["/ws/client", "/ws"])
async def test_0_5_a_bad_token_is_accepted_and_closed_with_4002(
    tmp_path: Path, token: str, path: str
) -> None:
    async with serve_here(tmp_path) as server:
        connection, response = await ask(server, target(token, path=path))
        assert response.status == 101
        found = await connection.read_frame()
        assert found.opcode == CLOSE
        assert found.payload[:2] == (4002).to_bytes(2, "big")
        assert found.payload[2:].decode()
        await connection.send(close(4002))
        assert await connection.read_to_end() == b""
        assert server.server.relay.client_count == 0


MISSING = {
    "everything": "/ws/client",
    "token": f"/ws/client?device={MACHINE}",
    "empty token": f"/ws/client?token=&device={MACHINE}",
    "device": "/ws/client?token={token}",
    "empty device": "/ws/client?token={token}&device=",
    "malformed device": "/ws/client?token={token}&device=BRW-12",
    "everything, by the other name": "/ws",
}


@pytest.mark.parametrize("path", MISSING.values(), ids=MISSING)
async def test_missing_parameters_are_refused_with_400(tmp_path: Path, path: str) -> None:
    async with serve_here(tmp_path) as server:
        _, response = await ask(server, path.replace("{token}", server.token()))
        assert response.status == 400
        assert response.header("connection") == ["close"]


@pytest.mark.parametrize("devices", [[], [OTHER], [OTHER, machine_id(3)]])
async def test_page_without_access_is_closed_with_4002(tmp_path: Path, devices: list[str]) -> None:
    async with serve_here(tmp_path) as server:
        assert await see_close(server, target(server.token(devices))) == (4002, "no access to this device")
        assert server.server.relay.client_count == 0


# §2: the URL and access


@pytest.mark.parametrize("path", ["/ws/client", "/ws"])
async def test_2_both_paths_are_equivalent(tmp_path: Path, path: str) -> None:
    async with serve_here(tmp_path) as server:
        connection, response = await ask(server, target(server.token(), path=path))
        assert response.status == 101
        assert response.header("connection") == ["Upgrade"]
        assert response.header("sec-websocket-extensions") == []
        assert response.header("sec-websocket-protocol") == []
        assert (await connection.read_json())["type"] == "connected"


async def test_2_parameters_of_the_page_are_ignored(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        token = server.token([MACHINE])
        page = f"dev=true&tab=system&empty=&novalue&device={OTHER}&token=of-the-page&x=%C3%A9+y"
        connection, response = await ask(server, f"/ws/client?{page}&token={token}&device={MACHINE}")
        assert response.status == 101
        assert (await connection.read_json())["deviceId"] == MACHINE


@pytest.mark.parametrize("page", ["q=%ff", "q=%", "q=%zz", "q", "&&&", "q=%00", "=x"])
async def test_2_undecodable_parameters_of_the_page_are_ignored(tmp_path: Path, page: str) -> None:
    async with serve_here(tmp_path) as server:
        _, response = await ask(server, f"/ws/client?{page}&token={server.token()}&device={MACHINE}")
        assert response.status == 101


@pytest.mark.parametrize("devices", ["*", [MACHINE], [OTHER, MACHINE], [MACHINE.lower()]])
async def test_access_by_token(tmp_path: Path, devices: list[str] | str) -> None:
    async with serve_here(tmp_path) as server:
        assert (await server.client(MACHINE, token=server.token(devices))).connected["deviceId"] == MACHINE


async def test_access_by_registry(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with serve_process(tmp_path) as server:
            mine = target(server.token([], user_id="ada"))
            assert await see_close(server, mine) == (4002, "no access to this device")
            added = await run_command(
                tmp_path, "device", "add", MACHINE, "--key", DEVICE_KEY, "--user", "ada"
            )
            assert added.returncode == 0, added.stderr
            await see_who_gets_in(server)


async def see_close(server: Reach, asked: str) -> tuple[int, str]:
    """Return the code and reason with which a connected client is closed."""
    connection, response = await ask(server, asked)
    assert response.status == 101
    return await connection.read_close()


async def see_who_gets_in(server: ProcessServer) -> None:
    mine = server.token([], user_id="ada")
    assert (await server.client(MACHINE, token=mine)).connected["deviceOnline"] is False
    for elsewhere in (target(mine, OTHER), target(server.token([], user_id="eve"))):
        assert await see_close(server, elsewhere) == (4002, "no access to this device")
    await server.device(MACHINE, key=DEVICE_KEY)


# §2.2: messages of the relay itself


@pytest.mark.parametrize("online", [True, False])
async def test_2_2_connected(tmp_path: Path, online: bool) -> None:
    async with serve_here(tmp_path) as server:
        if online:
            await server.device(MACHINE)
        greetings = [(await server.client(MACHINE)).connected for _ in range(2)]
        for greeting in greetings:
            assert set(greeting) == {"type", "sessionId", "deviceId", "deviceOnline", "timestamp"}
            assert greeting["type"] == "connected"
            assert greeting["deviceId"] == MACHINE
            assert greeting["deviceOnline"] is online
            assert abs(greeting["timestamp"] - time.time() * 1000) < 5000
        assert greetings[0]["sessionId"] != greetings[1]["sessionId"]


@pytest.mark.parametrize("leave", ["abort", "close", "eof"])
async def test_2_2_device_online_and_offline(tmp_path: Path, leave: str) -> None:
    async with serve_here(tmp_path) as server:
        clients = [await server.client(MACHINE) for _ in range(3)]
        stranger = await server.client(OTHER)
        device = await server.device(MACHINE)
        for client in clients:
            assert (await client.read_message()).payload == b'{"type":"device_online"}'
        if leave == "abort":
            device.abort()
        elif leave == "eof":
            await device.send_eof()
        else:
            await device.send(close(1000))
        with trio.fail_after(1):
            for client in clients:
                assert (await client.read_message()).payload == b'{"type":"device_offline"}'
        await server.device(OTHER)
        assert await stranger.read_json() == {"type": "device_online"}


async def test_2_2_command_for_an_absent_machine_returns_an_error(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        client = await server.client(MACHINE)
        await client.send(text({"type": "command", "deviceId": MACHINE, "cmd": "set_mode", "mode": "on"}))
        answer = await client.read_json()
        assert (answer["type"], answer["error"]) == ("error", "device_offline")
        assert answer["message"]


@pytest.mark.parametrize("question", ["request_state", "request_full_status"])
@pytest.mark.parametrize("encode", [text, packed])
async def test_2_2_state_request_for_an_absent_machine_returns_no_error(
    tmp_path: Path, question: str, encode: Callable[[dict[str, Any]], bytes]
) -> None:
    async with serve_here(tmp_path) as server:
        client = await server.client(MACHINE)
        await client.send(encode({"type": question, "deviceId": MACHINE}))
        answer = await client.read_json()
        assert answer == {"type": "device_status", "deviceId": MACHINE, "online": False, "lastSeen": None}


async def test_2_2_last_seen_is_the_time_of_the_disconnect(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        client, device = await server.client(MACHINE), await server.device(MACHINE)
        device.abort()
        await client.read_until("device_offline")
        await client.send(text({"type": "request_state"}))
        last_seen = (await client.read_json())["lastSeen"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", last_seen)
        today = time.strftime("%Y-%m-%dT%H", time.gmtime())
        assert last_seen.startswith(today) or time.gmtime().tm_min == 0


async def test_2_2_last_seen_survives_a_restart(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        await server.device(MACHINE)
    async with serve_here(tmp_path, machines=()) as server:
        client = await server.client(MACHINE)
        await client.send(text({"type": "request_state"}))
        assert (await client.read_json())["lastSeen"]


# §0.6, §2.4: the end


async def test_0_6_a_close_with_1000_is_answered_with_1000(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        device, client = await server.device(MACHINE), await server.client(MACHINE)
        await device.send(text({"type": "status"}))
        assert await client.read_json() == {"type": "status"}
        await client.send(close(1000, b"bye"))
        assert (await client.read_frame())[::2] == (0x80 | CLOSE, (1000).to_bytes(2, "big"))
        assert await client.read_to_end() == b""
        await left(server, clients=0)


@pytest.mark.parametrize("code", [None, 1001, 3000, 4000, 4999])
async def test_0_6_other_close_codes_are_echoed(tmp_path: Path, code: int | None) -> None:
    async with serve_here(tmp_path) as server:
        client = await server.client(MACHINE)
        await client.send(close(code))
        assert (await client.read_frame()).payload == (b"" if code is None else code.to_bytes(2, "big"))
        with pytest.raises(Ended):
            await client.read_frame()


async def left(server: HereServer, *, clients: int) -> None:
    with trio.fail_after(1):
        while server.server.relay.client_count != clients:  # noqa: ASYNC110 - another task detaches the client
            await trio.sleep(0.001)


# §3, §4: relayed messages


async def test_3_any_message_with_a_type_reaches_the_machine_unchanged(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        device, client = await server.device(MACHINE), await server.client(MACHINE)
        sent = [
            b'{"type":"request_state","deviceId":"BRW-00000001"}',
            b'{"type":"command","deviceId":"BRW-00000001","cmd":"set_temp","boiler":"brew","temp":93.5}',
            b'{ "cmd" : "record_maintenance", "type" : "backflush" }',
            '{"type":"anything","name":"Küche ☕"}'.encode(),
        ]
        await client.send(*[text(payload) for payload in sent])
        for payload in sent:
            assert (await device.read_message()).payload == payload


async def test_4_every_client_gets_the_same_bytes(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        device = await server.device(MACHINE)
        clients = [await server.client(MACHINE) for _ in range(10)]
        stranger = await server.client(OTHER)
        payloads = [b'{"type":"status","seq":%d}' % seq for seq in range(50)]
        await device.send(*[text(payload) for payload in payloads])
        for client in clients:
            assert [(await client.read_frame()).payload for _ in payloads] == payloads
        await server.device(OTHER)
        assert await stranger.read_json() == {"type": "device_online"}
