"""Tests of client.http_call: one request, and its errors."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.http_call import get_json, post_json
from brewos_relay.client.websocket import RelayRefused
from brewos_relay.errors import SettingsError
from support.resources import own_open_files
from support.websocket_server import answering, open_server

SECRET = "s3cr3t"


def answer(status: str, body: bytes, *headers: str) -> Callable[[trio.SocketStream], Awaitable[None]]:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return answering("\r\n".join(lines).encode() + body)


async def post(url: str, **options: Any) -> dict[str, Any]:
    with trio.fail_after(5):
        return await post_json(url, "/api/x", {"secret": SECRET}, **options)


async def test_post_returns_the_answer() -> None:
    requests: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while not received.endswith(b"}"):
                received += await stream.receive_some()
            requests.append(received)
            await stream.send_all(
                b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"a":"b"}\r\n0\r\n\r\n'
            )

    async with open_server(serve) as url:
        before = own_open_files()
        assert await post(url) == {"a": "b"}
        await trio.testing.wait_all_tasks_blocked()
        assert own_open_files() <= before
    head, _, body = requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /api/x HTTP/1.1"
    assert "Content-Type: application/json" in lines
    assert f"Host: {url.removeprefix('http://')}" in lines
    assert msgspec.json.decode(body) == {"secret": SECRET}


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"[" * 5000])
async def test_answer_without_json_is_empty(body: bytes) -> None:
    async with open_server(answer("200 OK", body)) as url:
        assert await post(url) == {}


async def test_refusal_has_status_text_and_retry_after() -> None:
    async with open_server(answer("429 Too Many", b'{"error":"slow\\n down"}', "Retry-After: 7")) as url:
        with pytest.raises(RelayRefused, match="slow  down") as caught:
            await post(url)
        assert (caught.value.status, caught.value.retry_after_s) == (429, 7)
        assert SECRET not in str(caught.value)
    async with open_server(answer("500 Oops", b"<html>")) as url:
        with pytest.raises(RelayRefused) as caught:
            await post(url)
        assert (caught.value.detail, caught.value.retry_after_s) == ("", None)


@pytest.mark.parametrize(
    "answers",
    [
        answering(b""),
        answering(b"SSH-2.0-OpenSSH_9.6\r\n"),
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"),
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + b"x" * 300_000),
    ],
)
async def test_invalid_answer_raises(answers: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
    async with open_server(answers) as url:
        before = own_open_files()
        with pytest.raises(RelayUnreachable, match="did not answer in HTTP"):
            await post(url)
        await trio.testing.wait_all_tasks_blocked()
        assert own_open_files() <= before


async def test_timeout_raises() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    async with open_server(silent) as url:
        with pytest.raises(RelayUnreachable, match=r"did not answer in 0\.05 s"):
            await post(url, timeout_s=0.05)


async def test_secrets_leave_this_computer_only_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unused(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(trio, "open_tcp_stream", unused)
    for url in ("http://relay.example", "ws://192.168.1.2:3001"):
        with pytest.raises(SettingsError, match="use https"):
            await post(url)


async def test_get_sends_the_token_and_no_body() -> None:
    requests: list[bytes] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            requests.append(await stream.receive_some())
            await stream.send_all(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a":"b"}')

    async with open_server(serve) as url:
        with trio.fail_after(5):
            assert await get_json(url, "/api/x?seconds=60", "t0ken") == {"a": "b"}
    lines = requests[0].decode().split("\r\n")
    assert lines[0] == "GET /api/x?seconds=60 HTTP/1.1"
    assert "Authorization: Bearer t0ken" in lines
    assert lines[-2:] == ["", ""]
