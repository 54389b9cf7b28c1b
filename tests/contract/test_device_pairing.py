"""The registration of machines; tests are named for the sections of the device contract."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from brewos_relay.registry.access import give
from brewos_relay.vocabulary import now_ms
from support.household import add_session
from support.http_client import ask
from support.process import KEY, WRONG_KEY, HereServer, machine_id, serve_here
from support.steady_clock import SteadyClock
from support.wire_client import Response, upgrade_head

NEW = "BRW-1234ABCD"
OWNED = machine_id(1)
TOKEN = "Sc-reen_Of-the_Machine-Shows0123"


def segments(body: bytes) -> list[bytes]:
    """Return a registration as the writes of a machine: one for each line, then the body."""
    return [
        b"POST /api/devices/register-claim HTTP/1.1\r\n",
        b"Host: cloud.example\r\n",
        b"Content-Type: application/json\r\n",
        b"Content-Length: %d\r\n" % len(body),
        b"Connection: close\r\n\r\n",
        body,
    ]


def registration(device_id: str = NEW, *, token: str = TOKEN, key: str = KEY) -> bytes:
    return msgspec.json.encode({"deviceId": device_id, "token": token, "deviceKey": key})


async def post(server: HereServer, body: bytes, *, pause_s: float | None = None) -> tuple[Response, bytes]:
    """Send a registration; return the answer, and its first part, which is all that a machine reads."""
    connection = await server.connect()
    if pause_s is None:
        await connection.send(*segments(body))
    else:
        for segment in segments(body):
            await connection.send(segment)
            await trio.sleep(pause_s)
    first = bytes(await connection.stream.receive_some(65536))
    connection._received += first
    response = await connection.read_response()
    assert await connection.read_to_end() == b""
    return response, first


async def register(server: HereServer, device_id: str = NEW, **changed: Any) -> None:
    response, _ = await post(server, registration(device_id, **changed))
    assert response.status == 200


async def owned(server: HereServer, user_id: str = "ada") -> None:
    await server.server.store.write(give, OWNED, user_id, role="owner", now_ms=now_ms())


async def claim(server: HereServer, user_id: str, device_id: str = NEW, token: str = TOKEN) -> int:
    session_id = f"session of {user_id}"
    await server.server.store.write(add_session, user_id, session_id)
    body = {"deviceId": device_id, "token": token}
    access_token = server.signer.issue(user_id=user_id, email="a@b.c", session_id=session_id)
    return (await ask(server, "POST", "/api/devices/claim", body, token=access_token)).status


async def lets_in(server: HereServer, device_id: str, key: str) -> bool:
    connection = await server.connect()
    response = await connection.ask(upgrade_head(f"/ws/device?id={device_id}&key={key}"))
    assert response.status in {101, 401, 403}
    connection.abort()
    return response.status == 101


def seen_as_success(answer: bytes) -> bool:
    return b"200 " in answer


# §3.2: the request and its answer


@pytest.mark.parametrize("pause_s", [None, 0.001, 0.02])
async def test_3_2_six_tiny_segments_and_an_answer_in_one(tmp_path: Path, pause_s: float | None) -> None:
    async with serve_here(tmp_path) as server:
        response, first = await post(server, registration(), pause_s=pause_s)
        assert first.startswith(b"HTTP/1.1 200 ")
        assert first == response.head + b"\r\n\r\n" + response.body
        assert len(first) < 1400
        assert first.count(b"200 ") == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"200 ",
        b'{"200 ":"200 "}',
        registration("200 OK 200 "),
        registration(token="200 OK 200 "),
        registration(key="200 "),
        b"[" * 200,
        b"\xff200 ",
        b'{"deviceId":' + b" " * 200 + b"200 }",
    ],
)
async def test_3_2_no_refusal_looks_like_a_success(tmp_path: Path, body: bytes) -> None:
    async with serve_here(tmp_path) as server:
        response, first = await post(server, body)
        assert response.status == 400
        assert not seen_as_success(first + b" " + response.body)


async def test_3_2_rate_limit_answers_429_that_does_not_look_like_a_success(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        for number in range(40):
            response, first = await post(server, registration(key=f"{number:043}"))
            if response.status == 429:
                break
        assert response.status == 429
        assert int(response.header("retry-after")[0]) > 0
        assert not seen_as_success(first)


async def test_3_2_repeated_registration_is_accepted(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        for _ in range(30):
            await register(server)
        assert await claim(server, "ada") == 200
        await register(server)
        assert await claim(server, "ada") == 200
        assert await claim(server, "eve") == 404


async def test_3_2_many_machines_register_at_once_after_a_power_cut(
    tmp_path: Path, steady_clock: SteadyClock
) -> None:
    async with serve_here(tmp_path, within_s=30) as server:
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(register, server, f"BRW-{number:08X}")
        assert trio.current_time() - began_at < 10  # a machine's timeout for the answer


# §3.2: after the registration


async def test_3_2_an_unknown_machine_can_connect_once_it_has_registered(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        assert not await lets_in(server, NEW, KEY)
        await register(server)
        assert await lets_in(server, NEW, KEY)
        assert not await lets_in(server, NEW, WRONG_KEY)


async def test_3_2_machine_without_users_may_change_its_key(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        await register(server)
        await register(server, key=WRONG_KEY)
        assert await lets_in(server, NEW, WRONG_KEY)
        assert not await lets_in(server, NEW, KEY)


async def test_3_2_another_key_for_an_owned_machine_is_held_back(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        await owned(server)
        app = await server.client(OWNED, token=server.token([], user_id="ada"))
        await register(server, OWNED, key=WRONG_KEY)
        assert await lets_in(server, OWNED, KEY)
        assert not await lets_in(server, OWNED, WRONG_KEY)
        with trio.fail_after(2):
            assert (await app.read_until("log"))["level"] == "warn"
        path = f"/api/devices/{OWNED}"
        told = await ask(server, "GET", path, token=server.token([], user_id="ada"))
        assert told.content["device"]["keyPending"] is True


async def test_3_2_only_an_owner_who_sees_the_screen_confirms_the_key(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        await owned(server)
        await register(server, OWNED, key=WRONG_KEY)
        assert await claim(server, "eve", OWNED) == 404
        assert await claim(server, "ada", OWNED, "x" * 32) == 404
        assert not await lets_in(server, OWNED, WRONG_KEY)
        assert await claim(server, "ada", OWNED) == 200
        assert await lets_in(server, OWNED, WRONG_KEY)
        assert not await lets_in(server, OWNED, KEY)


async def test_3_2_connection_with_the_old_key_ends_when_an_owner_pairs(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        await owned(server)
        machine = await server.device(OWNED)
        await register(server, OWNED, key=WRONG_KEY)
        assert await claim(server, "ada", OWNED) == 200
        with trio.fail_after(2):
            assert (await machine.read_close())[0] == 4003


async def test_3_2_new_token_of_the_machine_gives_membership(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        await owned(server)
        await register(server, OWNED)
        assert await claim(server, "bob", OWNED) == 200
        told = await ask(server, "GET", "/api/devices", token=server.token([], user_id="bob"))
        assert [device["role"] for device in told.content["devices"]] == ["member"]


async def test_3_2_released_machine_can_be_paired_again(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        await owned(server)
        machine = await server.device(OWNED)
        gone = await ask(server, "DELETE", f"/api/devices/{OWNED}", token=server.token([], user_id="ada"))
        assert gone.status == 200
        # Its key is still valid: it stays connected.
        await machine.show_life()
        await register(server, OWNED)
        assert await claim(server, "bob", OWNED) == 200
        told = await ask(server, "GET", "/api/devices", token=server.token([], user_id="bob"))
        assert [device["role"] for device in told.content["devices"]] == ["owner"]
