"""Tests of commands.run_client: output, exceptions and exit codes of tail and send."""

import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec
import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from brewos_relay.client.backoff import Backoff
from brewos_relay.client.codec import encode_binary
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused
from brewos_relay.commands import run_client
from brewos_relay.commands.run_client import (
    CommandRefused,
    build_command,
    run_send,
    run_tail,
)
from brewos_relay.errors import SettingsError
from support.websocket_server import answering, open_server, open_websocket_server

DEADLINE_S = 10.0
DEVICE_ID = "BRW-0000ABCD"
CONNECTED = '{"type":"connected","deviceId":"BRW-0000ABCD","deviceOnline":true}'


@contextmanager
def serving(
    converse: Callable[[WebSocketConnection], Awaitable[None]] | None = None, *, refuse: bytes = b""
) -> Iterator[str]:
    """Run a relay in another thread, as the tested function runs Trio itself; yield its URL."""
    ready = threading.Event()
    urls: list[str] = []
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        with trio.fail_after(DEADLINE_S), trio.CancelScope() as scope:
            token = trio.lowlevel.current_trio_token()
            stop.append(lambda: token.run_sync_soon(scope.cancel))
            if converse is None:
                async with open_server(answering(refuse)) as url:
                    urls.append(url)
                    ready.set()
                    await trio.sleep_forever()
            async with open_websocket_server() as (url, accepted):
                urls.append(url)
                ready.set()
                async for visit in accepted:
                    with suppress(ConnectionClosed):
                        await converse(visit.connection)

    thread = threading.Thread(target=trio.run, args=(main,), daemon=True)
    thread.start()
    assert ready.wait(DEADLINE_S)
    try:
        yield urls[0]
    finally:
        stop[0]()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_tail_prints_lines_until_it_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str | bytes] = []

    async def converse(connection: WebSocketConnection) -> None:
        await connection.send_message(CONNECTED)
        asked.append(await connection.get_message())
        await connection.send_message(
            encode_binary({"type": "status_delta", "seq": 1, "pressure": 9.1}).payload
        )
        await connection.send_message('{"type":"device_offline"}')
        await connection.send_message('{"type":"keepalive","timestamp":1}')
        await connection.aclose(4003, "access ended")

    with serving(converse) as url, pytest.raises(ConnectionEnded, match=r"code 4003: access ended$"):
        run_tail(url=url, token="t0k3n", device_id=DEVICE_ID, as_json=False)
    assert [json.loads(message) for message in asked] == [{"type": "request_state"}]
    printed = capsys.readouterr()
    lines = [line.split(maxsplit=2)[1:] for line in printed.out.splitlines()]
    assert lines == [
        ["connected", f"attached to {DEVICE_ID}; the device is online"],
        ["status_delta", "9.1 bar"],
        ["device_offline", "the device has disconnected"],
    ]
    assert printed.err == ""


def test_tail_prints_messages_received_before_a_close(capsys: pytest.CaptureFixture[str]) -> None:
    async def converse(connection: WebSocketConnection) -> None:
        await connection.send_message(CONNECTED)
        await connection.send_message(CONNECTED)
        await connection.aclose(4003)

    with serving(converse) as url, pytest.raises(ConnectionEnded, match=r"code 4003$"):
        run_tail(url=url, token="t0k3n", device_id=DEVICE_ID, as_json=False)
    assert capsys.readouterr().out.count("attached to") == 2


def test_tail_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    async def converse(connection: WebSocketConnection) -> None:
        await connection.send_message('{\n"type":"log",\n"message":"a\\nb"}')
        await connection.send_message(encode_binary({"type": "status", "seq": 1, "t": 93.2}).payload)
        await connection.send_message(b"\xc1")
        await connection.aclose(4002, "the token has expired")

    with serving(converse) as url, pytest.raises(ConnectionEnded) as caught:
        run_tail(url=url, token="t0k3n", device_id=DEVICE_ID, as_json=True)
    printed = capsys.readouterr()
    assert [json.loads(line) for line in printed.out.splitlines()] == [
        {"type": "log", "message": "a\nb"},
        {"type": "status", "seq": 1, "t": 93.2},
        {"undecodable": True, "bytes": 1},
    ]
    assert "4002: the token has expired; " in str(caught.value)
    assert "`brewos-relay token`" in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 503])
def test_refusal_is_reported(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    answer = b"HTTP/1.1 %d No\r\nContent-Length: 3\r\n\r\nno!" % status
    told = f"^the relay refused the connection: HTTP {status}: no!$"
    with serving(refuse=answer) as url:
        with pytest.raises(RelayRefused, match=told):
            run_tail(url=url, token="t0k3n", device_id=DEVICE_ID, as_json=False)
        with pytest.raises(RelayRefused, match=told):
            run_send(url=url, token="t0k3n", device_id=DEVICE_ID, command="tare", fields=())
    assert capsys.readouterr() == ("", "")


def test_wrong_url_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"http://HOST\[:PORT\]"):
        run_tail(url="relay.example", token="t0k3n", device_id=DEVICE_ID, as_json=False)


def test_wrong_field_is_refused() -> None:
    with pytest.raises(SettingsError, match="key=value"):
        run_send(
            url="http://127.0.0.1:1", token="t0k3n", device_id=DEVICE_ID, command="set_mode", fields=("on",)
        )


def test_unreachable_relay_is_reported_with_advice() -> None:
    with serving(refuse=b"") as url, pytest.raises(RelayUnreachable) as caught:
        run_tail(url=url, token="t0k3n", device_id=DEVICE_ID, as_json=False)
    assert str(caught.value).startswith(f"{url} closed the connection without an answer; ")
    assert "`brewos-relay serve`" in str(caught.value)


@pytest.mark.parametrize("code", [1008, 1012])
def test_tail_reconnects_after_a_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    visits: list[int] = []

    async def converse(connection: WebSocketConnection) -> None:
        visits.append(1)
        await connection.send_message(CONNECTED)
        await connection.get_message()
        if len(visits) == 1:
            await connection.send_message('{"type":"restarting","reconnectInMs":10}')
            await connection.send_message('{"type":"restarting","reconnectInMs":%s}' % ("9" * 400))
            await connection.aclose(code, "restarting")
        await connection.aclose(4002, "expired")

    with serving(converse) as url, pytest.raises(ConnectionEnded, match="4002"):
        run_tail(url=url, token="t0k3n", device_id=DEVICE_ID, as_json=True)
    printed = capsys.readouterr()
    kinds = [json.loads(line)["type"] for line in printed.out.splitlines()]
    assert kinds == ["connected", "restarting", "restarting", "connected"]
    assert printed.err == f"the connection was closed with code {code}: restarting; next attempt in 0.1 s\n"


def send_and_answer(
    *answers: str, fields: tuple[str, ...] = ("requestId=r-1",)
) -> tuple[int, list[bytes | str]]:
    """Run `send` against a relay that answers; return the exit code and the received messages."""
    received: list[str | bytes] = []

    async def converse(connection: WebSocketConnection) -> None:
        await connection.send_message('{"type":"status"}')
        await connection.send_message(CONNECTED)
        received.append(await connection.get_message())
        for answer in answers:
            await connection.send_message(answer)
        await trio.sleep_forever()

    with serving(converse) as url:
        code = run_send(url=url, token="t0k3n", device_id=DEVICE_ID, command="set_temp", fields=fields)
    return code, received


def fate(status: str) -> str:
    return json.dumps({"type": "command_status", "requestId": "r-1", "status": status})


def test_send_waits_for_the_greeting_and_reports_delivery(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, received = send_and_answer(
        '{"type":"command_status","requestId":"somebody else\'s","status":"expired"}',
        fate("queued"),
        fate("delivered"),
        '{"type":"log","level":"info","message":"Set\\u001b[0m"}',
        fields=("requestId=r-1", "boiler=brew", "temp=93.5", "now=true"),
    )
    assert code == 0
    printed = capsys.readouterr()
    assert printed.out == "delivered\nthe device logs: Set [0m\n"
    assert "waits for it" in printed.err
    (sent,) = (json.loads(message) for message in received)
    assert sent == {
        "type": "command",
        "cmd": "set_temp",
        "requestId": "r-1",
        "boiler": "brew",
        "temp": 93.5,
        "now": True,
    }


def test_silent_device_is_not_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_client, "ANSWER_S", 0.01)
    assert send_and_answer(fate("delivered"))[0] == 0
    assert capsys.readouterr().out == "delivered\n"


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([fate("device_offline")], "the device is offline"),
        ([fate("queued"), fate("expired")], "did not connect in time"),
        ([fate("forbidden")], "ask an owner of the device"),
        (['{"type":"error","message":"Not you."}', fate("forbidden")], r"^Not you\.$"),
        ([fate("lost")], "not delivered: lost"),
    ],
)
def test_send_reports_the_outcome(answers: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandRefused, match=told):
        send_and_answer(*answers)
    assert capsys.readouterr().out == ""


def test_send_times_out_without_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_client, "FATE_S", 0.05)
    with pytest.raises(CommandRefused, match=r"did not confirm the command in 0\.05 s"):
        send_and_answer()


def send_after_ends(*codes: int, greets: bool = False) -> tuple[int, list[str | bytes]]:
    """Run `send` against a relay that closes one connection with each of these codes before it answers."""
    received: list[str | bytes] = []
    ends = list(codes)

    async def converse(connection: WebSocketConnection) -> None:
        if greets or not ends:
            await connection.send_message(CONNECTED)
            received.append(await connection.get_message())
        if ends:
            await connection.aclose(ends.pop(0), "later")
        await connection.send_message(fate("delivered"))
        await trio.sleep_forever()

    with serving(converse) as url:
        code = run_send(
            url=url, token="t0k3n", device_id=DEVICE_ID, command="tare", fields=("requestId=r-1",)
        )
    return code, received


def test_send_connects_again_if_its_command_was_not_sent_yet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Backoff, "next_s", lambda _: 0.01)
    code, received = send_after_ends(1008, 1012)
    assert code == 0
    assert len(received) == 1
    assert "code 1008: later; next attempt in 0.0 s" in capsys.readouterr().err
    with pytest.raises(ConnectionEnded, match="1008"):
        send_after_ends(1008, 1008, 1008, 1008)


def test_send_never_sends_a_command_twice() -> None:
    with pytest.raises(ConnectionEnded, match="1008"):
        send_after_ends(1008, greets=True)


@pytest.mark.parametrize(("reason", "told"), [("bad token", "bad token"), ("", "the token is not accepted")])
def test_send_reports_a_rejected_token(reason: str, told: str) -> None:
    async def converse(connection: WebSocketConnection) -> None:
        await connection.aclose(4002, reason)

    with serving(converse) as url, pytest.raises(ConnectionEnded) as caught:
        run_send(url=url, token="t0k3n", device_id=DEVICE_ID, command="tare", fields=())
    assert f"code 4002: {told}; `brewos-relay token`" in str(caught.value)


def test_send_times_out_without_a_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(connection: WebSocketConnection) -> None:
        await connection.get_message()

    monkeypatch.setattr(run_client, "GREETING_S", 0.05)
    with serving(converse) as url, pytest.raises(CommandRefused, match="sent no greeting"):
        run_send(url=url, token="t0k3n", device_id=DEVICE_ID, command="tare", fields=())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("93", 93),
        ("-1.5", -1.5),
        ("true", True),
        ("null", None),
        ('"5"', "5"),
        ("007", "007"),
        ("NaN", "NaN"),
        ("a=b", "a=b"),
        ("", ""),
        ("[" * 2000, "[" * 2000),
    ],
)
def test_field_values_are_json_or_text(text: str, value: object) -> None:
    content = msgspec.json.decode(build_command("c", [f"k={text}"], request_id="r").payload)
    assert content == {"type": "command", "cmd": "c", "k": value, "requestId": "r"}


@pytest.mark.parametrize(
    "fields", [["on"], ["=on"], ["cmd=x"], ["type=x"], ["a=1", "a=2"], ["a=" + "x" * 5000]]
)
def test_invalid_fields_are_refused(fields: list[str]) -> None:
    with pytest.raises(SettingsError):
        build_command("set_mode", fields, request_id="r")


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_client, "print_line", interrupt)

    async def converse(connection: WebSocketConnection) -> None:
        await connection.send_message(CONNECTED)
        await connection.get_message()

    with serving(converse) as url:
        assert run_tail(url=url, token="t0k3n", device_id=DEVICE_ID, as_json=False) == 0
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_before_a_command_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_client, "_wait_for", interrupt)

    async def converse(connection: WebSocketConnection) -> None:
        await connection.get_message()

    with serving(converse) as url:
        assert run_send(url=url, token="t0k3n", device_id=DEVICE_ID, command="tare", fields=()) == 130
    assert capsys.readouterr() == ("", "")
