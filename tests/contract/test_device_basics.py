"""The firmware's expectations of a relay; tests are named for the rules of the device contract."""

import statistics
import time
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from support.process import KEY, WRONG_KEY, HereServer, machine_id, serve_here
from support.wire_client import (
    NO_MASK,
    PING,
    Response,
    WireClient,
    accept_value,
    close,
    frame,
    text,
    upgrade_head,
)

UNKNOWN = "BRW-FFFFFFFF"
MIN_AGE_S = 0.3


def request(query: str, *, key: str = "AQIDBAUGBwgJCgsMDQ4PEA==") -> bytes:
    """Build the request of the firmware, byte for byte."""
    lines = [
        f"GET /ws/device{query} HTTP/1.1",
        "Host: cloud.example:443",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Protocol: arduino",
        "Origin: file://",
        "User-Agent: arduino-WebSocket-Client",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


GOOD = f"?id={machine_id(1)}&key={KEY}"


async def ask(server: HereServer, query: str) -> tuple[WireClient, Response]:
    connection = await server.connect()
    return connection, await connection.ask(request(query))


# §1.1, §1.2: the request and its answer


async def test_1_1_the_request_of_the_firmware_is_accepted(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        connection, response = await ask(server, GOOD)
        assert response.status == 101
        greeting = await connection.read_json()
        assert set(greeting) == {"type", "timestamp"}
        assert greeting["type"] == "connected"
        assert abs(greeting["timestamp"] - time.time() * 1000) < 5000


async def test_1_1_the_request_may_come_in_pieces(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        connection = await server.connect()
        whole = request(GOOD)
        for start in range(0, len(whole), 20):
            await connection.send(whole[start : start + 20])
            await trio.lowlevel.checkpoint()
        assert (await connection.read_response()).status == 101


async def test_rule_8_101_has_the_form_that_firmware_reads(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        _, response = await ask(server, GOOD)
        lines = response.head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 101")
        assert b"Connection: Upgrade" in lines
        assert response.header("connection") == ["Upgrade"]
        assert [value.lower() for value in response.header("upgrade")] == ["websocket"]
        assert response.header("sec-websocket-accept") == [accept_value("AQIDBAUGBwgJCgsMDQ4PEA==")]
        assert response.header("sec-websocket-protocol") == ["arduino"]
        assert response.header("sec-websocket-extensions") == []
        assert len(response.head) < 1024


async def test_1_2_only_requested_extensions_are_agreed_on(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        connection = await server.connect()
        head = upgrade_head(f"/ws/device{GOOD}", Sec_WebSocket_Extensions="permessage-deflate")
        response = await connection.ask(head)
        assert response.status == 101
        assert response.header("sec-websocket-protocol") == []
        assert response.header("sec-websocket-extensions") == []


async def test_1_2_a_frame_may_come_with_the_request(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        client = await server.client(machine_id(1))
        connection = await server.connect()
        await connection.send(request(GOOD), frame(PING, mask=NO_MASK), text({"type": "status"}))
        assert (await connection.read_response()).status == 101
        assert await client.read_json() == {"type": "device_online"}
        assert await client.read_json() == {"type": "status"}


@pytest.mark.parametrize("written", [machine_id(0xABCDEF).lower(), "brw-00aBcDeF", "Brw-00ABCDEF"])
async def test_3_1_ids_are_upper_case(tmp_path: Path, written: str) -> None:
    async with serve_here(tmp_path, machines=[0xABCDEF]) as server:
        await server.device(written)
        assert server.device_server.relay.is_online("BRW-00ABCDEF")
        assert (await server.client(written)).connected["deviceId"] == "BRW-00ABCDEF"


# §0 rule 2, §2.3: refusals

MALFORMED = {
    "nothing": "",
    "no id": f"?key={KEY}",
    "empty id": f"?id=&key={KEY}",
    "no key": f"?id={machine_id(1)}",
    "empty key": f"?id={machine_id(1)}&key=",
    "short key": f"?id={machine_id(1)}&key=abc",
    "long key": f"?id={machine_id(1)}&key={'k' * 200}",
    "key of other characters": f"?id={machine_id(1)}&key={'*' * 43}",
    "id of 7 digits": f"?id=BRW-1234567&key={KEY}",
    "id of 9 digits": f"?id=BRW-123456789&key={KEY}",
    "id not hexadecimal": f"?id=BRW-1234567G&key={KEY}",
    "id of another kind": f"?id=ABC-12345678&key={KEY}",
    "id with a line end": f"?id={machine_id(1)}%0A&key={KEY}",
    "id of other digits": f"?id=BRW-1234567%D9%A1&key={KEY}",
}
REFUSED = {
    **{f"400 {name}": (400, query) for name, query in MALFORMED.items()},
    "401 wrong key": (401, f"?id={machine_id(1)}&key={WRONG_KEY}"),
    "401 unknown id": (401, f"?id={UNKNOWN}&key={KEY}"),
}


@pytest.mark.parametrize(("status", "query"), REFUSED.values(), ids=REFUSED)
async def test_rule_2_refusals_come_before_the_upgrade(tmp_path: Path, status: int, query: str) -> None:
    async with serve_here(tmp_path) as server:
        connection, response = await ask(server, query)
        assert response.status == status
        assert response.header("connection") == ["close"]
        assert response.header("upgrade") == []
        assert b"200 " not in response.head + response.body
        await connection.send(b"This is a webSocket client!")
        await connection.send_eof()
        assert await connection.read_to_end() == b""
        assert server.device_server.relay.device_count == 0
        assert (await server.device(machine_id(1))).connected["type"] == "connected"


async def test_2_3_draining_server_answers_503(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        server.server.relay.closing = True
        _, response = await ask(server, GOOD)
        assert response.status == 503
        assert response.header("connection") == ["close"]
        assert b"200 " not in response.head + response.body


async def test_2_3_unknown_id_and_wrong_key_get_the_same_answer_in_the_same_time(tmp_path: Path) -> None:
    async with serve_here(tmp_path, within_s=20, admit_rate=0) as server:
        queries = (f"?id={UNKNOWN}&key={WRONG_KEY}", f"?id={machine_id(1)}&key={WRONG_KEY}")
        answers: tuple[set[bytes], set[bytes]] = (set(), set())
        took_s: tuple[list[float], list[float]] = ([], [])
        for _ in range(200):
            for query, seen, times in zip(queries, answers, took_s, strict=True):
                connection = await server.connect()
                began = time.perf_counter()
                response = await connection.ask(request(query))
                times.append(time.perf_counter() - began)
                seen.add(response.head + response.body)
                await connection.stream.aclose()
        assert answers[0] == answers[1]
        assert len(answers[0]) == 1
        medians = [statistics.median(times) for times in took_s]
        assert max(medians) < 2 * min(medians)


async def test_rule_7_the_answer_comes_in_time(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        for query in (GOOD, f"?id={machine_id(1)}&key={WRONG_KEY}"):
            with trio.fail_after(1):
                await ask(server, query)


# §0 rules 1, 3 and 4, §2.2, §2.3: young connections stay open


@pytest.mark.parametrize("cause", [frame(0x3), text(b"\xff"), frame(PING, mask=None)])
async def test_rule_1_a_young_machine_is_not_closed(tmp_path: Path, cause: bytes) -> None:
    async with serve_here(tmp_path, device_min_age_s=MIN_AGE_S) as server:
        began = trio.current_time()
        device = await server.device(machine_id(1))
        await device.send(cause)
        assert (await device.read_close())[0] in {1002, 1007}
        assert trio.current_time() - began >= MIN_AGE_S


@pytest.mark.parametrize("age_s", [0.0, MIN_AGE_S])
async def test_2_3_reconnecting_machine_replaces_its_connection(tmp_path: Path, age_s: float) -> None:
    async with serve_here(tmp_path, device_min_age_s=MIN_AGE_S) as server:
        began = trio.current_time()
        client = await server.client(machine_id(1))
        old = await server.device(machine_id(1))
        await trio.sleep(age_s)
        new = await server.device(machine_id(1))
        code, _ = await old.read_close()
        assert code == 4002
        assert trio.current_time() - began >= MIN_AGE_S
        await old.send(text({"type": "status", "of": "old"}))
        await client.send(text({"type": "command", "cmd": "tare"}))
        assert (await new.read_until("command"))["cmd"] == "tare"
        await old.send(close(1000))
        await old.send_eof()
        assert await old.read_to_end() == b""
        await new.send(text({"type": "status", "of": "new"}))
        assert await client.read_json() == {"type": "device_online"}
        assert await client.read_json() == {"type": "status", "of": "new"}
        assert server.device_server.relay.device_count == 1


async def test_2_3_machines_that_replace_each_other_end_as_one(tmp_path: Path) -> None:
    async with serve_here(tmp_path, device_min_age_s=MIN_AGE_S) as server:
        client = await server.client(machine_id(1))
        devices = [await server.device(machine_id(1)) for _ in range(10)]
        for old in devices[:-1]:
            assert (await old.read_close())[0] == 4002
        await devices[-1].send(text({"type": "status"}))
        assert await client.read_json() == {"type": "device_online"}
        assert await client.read_json() == {"type": "status"}


async def test_rule_4_the_end_is_a_close_frame(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        device = await server.device(machine_id(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.device_server.relay.drain)
            assert (await device.read_close())[0] == 1012
            await device.send(frame(0x8, (1000).to_bytes(2, "big")))
            await device.send_eof()
            assert await device.read_to_end() == b""


async def test_1_3_close_code_of_a_machine_is_echoed(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        client, device = await server.client(machine_id(1)), await server.device(machine_id(1))
        await device.send(close(1000))
        assert (await device.read_close())[0] == 1000
        assert await device.read_to_end() == b""
        assert await client.read_json() == {"type": "device_online"}
        assert await client.read_json() == {"type": "device_offline"}
