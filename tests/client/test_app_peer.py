"""Tests of client.app_peer."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio

from brewos_relay.client import app_peer as app_module
from brewos_relay.client import reconnecting_link as link_module
from brewos_relay.client.app_peer import App, NothingKnown, open_app
from brewos_relay.client.backoff import Backoff
from brewos_relay.client.command_outcomes import Outcome
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.reconnecting_link import LinkState, LinkStopped
from brewos_relay.client.token_sources import SignInEnded, Token
from brewos_relay.errors import SettingsError
from support.plain_websockets import Peer, PlainServer, open_plain_server
from support.steady_clock import SteadyClock
from support.waiting import until

DEVICE_ID = "BRW-0000ABCD"
DEADLINE_S = 10.0
STATUS = {"type": "status", "seq": 1, "temps": {"brew": {"current": 93.2}, "group": 88.0}, "pressure": 9.1}


@pytest.fixture
async def server() -> AsyncIterator[PlainServer]:
    async with open_plain_server() as server:
        yield server


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "Backoff", lambda: Backoff(first_s=0.05, longest_s=0.1))
    monkeypatch.setattr(link_module, "_AT_ONCE_S", 0.01)
    monkeypatch.setattr(app_module, "LATE_S", 0.1)
    monkeypatch.setattr(app_module, "REST_S", 0.1)


Open = Callable[..., AbstractAsyncContextManager[App]]


@pytest.fixture
def opened(server: PlainServer) -> Open:
    @asynccontextmanager
    async def opened(token: Token = "t0ken", **options: Any) -> AsyncIterator[App]:
        with trio.fail_after(DEADLINE_S):
            async with open_app(server.url, token, DEVICE_ID.lower(), **options) as app:
                yield app

    return opened


async def join(server: PlainServer, *, online: bool = True) -> Peer:
    """Accept the app, and greet it as a relay does."""
    peer = await server.accept()
    await peer.greet(deviceOnline=online, sessionId="x", deviceId=DEVICE_ID)
    await peer.receive_kind("ping")
    return peer


async def show(peer: Peer, *messages: dict[str, Any]) -> None:
    """Send the known state."""
    await peer.send(type="device_status", online=True, snapshotAgeMs=5)
    for message in messages:
        await peer.send(**message)
    await peer.send(type="pong")


# The known state


async def test_state_waits_for_the_complete_known_state(server: PlainServer, opened: Open) -> None:
    async with opened() as app:
        peer = await join(server)
        assert server.asked[0] == {"path": "/ws/client", "token": "t0ken", "device": DEVICE_ID}
        info = {"type": "device_info", "deviceName": "Kitchen"}
        await show(peer, STATUS, info)
        state = await app.state()
        assert (state.online, state.status, state.info) == (True, STATUS, info)
        await peer.send(type="status_delta", seq=2, temps={"group": 89.0})
        await peer.send(type="device_offline")
        await peer.send(type="end")
        async for message in app:
            if message["type"] == "end":
                break
        state = await app.state()
        assert not state.online
        assert state.status["temps"] == {"brew": {"current": 93.2}, "group": 89.0}
        assert state.status["seq"] == 2


async def test_state_waits_only_briefly_for_the_rest(server: PlainServer, opened: Open) -> None:
    async with opened() as app:
        peer = await join(server)
        await peer.send(**STATUS)
        assert (await app.state()).status == STATUS
        await peer.cut()
        await app.wait_for_state(LinkState.WAITING)
        peer = await join(server)
        await peer.send(type="device_info")
        state = await app.state(timeout_s=0.1)  # there is no status, but something
        assert (dict(state.status), state.info) == ({}, {"type": "device_info"})


@pytest.mark.parametrize(
    ("online", "why"), [(True, "it has sent no state"), (False, "the device is offline")]
)
async def test_state_raises_nothing_known_with_the_reason(
    server: PlainServer, opened: Open, online: bool, why: str
) -> None:
    async with opened() as app:
        await join(server, online=online)
        with pytest.raises(NothingKnown, match=f"{DEVICE_ID} is known after 0.05 s: {why}"):
            await app.state(timeout_s=0.05)


async def test_state_of_an_earlier_connection_is_not_returned(server: PlainServer, opened: Open) -> None:
    async with opened() as app:
        peer = await join(server)
        await show(peer, STATUS)
        await app.state()
        server.refusals = [(503, {})] * 50
        await peer.cut()
        await app.wait_for_state(LinkState.WAITING)
        with pytest.raises(NothingKnown, match=r"HTTP 503|was lost"):
            await app.state(timeout_s=0.2)


async def test_state_without_a_connection_raises_nothing_known(server: PlainServer, opened: Open) -> None:
    async with opened(enabled=False) as app:
        with pytest.raises(NothingKnown, match="the link is disabled"):
            await app.state(timeout_s=0.01)


async def test_delta_without_a_status_requests_the_full_status(server: PlainServer, opened: Open) -> None:
    async with opened() as app:
        peer = await join(server)
        await peer.send(type="status_delta", pressure=5.0)
        await peer.receive_kind("request_full_status")
        await show(peer, STATUS)
        assert (await app.state()).status["pressure"] == 9.1


# Messages


async def test_iteration_skips_messages_of_the_connection_itself(server: PlainServer, opened: Open) -> None:
    async with opened() as app:
        peer = await join(server)
        await peer.connection.send("nonsense")
        await peer.connection.send('{"type":5}')
        await peer.send(type="pong")
        await peer.send(type="auth_refreshed", success=True)
        await peer.send(type="command_status", requestId="somebody else's", status="delivered")
        await peer.connection.send(b"\x82\xa4type\xa6status\xa1p\xca\x42\xba\x66\x66")
        got = [await anext(app) for _ in range(3)]
        assert [message["type"] for message in got] == ["connected", "command_status", "status"]
        assert got[2] == {"type": "status", "p": 93.2}
        assert await app.send({"type": "request_state"})
        assert (await peer.receive())["type"] == "request_state"


async def test_busy_program_misses_the_oldest_messages_but_no_state(
    server: PlainServer, opened: Open
) -> None:
    async with opened(messages_at_most=2) as app:
        peer = await join(server)
        await show(peer, *({**STATUS, "seq": seq} for seq in range(10)))
        state = await app.state()
        assert state.status["seq"] == 9
        assert [(await anext(app))["seq"] for _ in range(2)] == [8, 9]
        assert app.missed_messages == 10  # the greeting and the device_status, too


# Commands


async def answered(peer: Peer, *statuses: str) -> dict[str, Any]:
    command = await peer.receive_kind("command")
    for status in statuses:
        await peer.send(type="command_status", requestId=command["requestId"], status=status)
    return command


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        (["delivered"], Outcome("delivered")),
        (["device_offline"], Outcome("device_offline")),
        (["forbidden"], Outcome("forbidden")),
        (["expired"], Outcome("expired")),
        (["queued", "delivered"], Outcome("delivered", waited=True)),
        (["queued", "expired"], Outcome("expired", waited=True)),
        (["something new", "delivered", "expired"], Outcome("delivered")),
        (["unknown"], Outcome("unknown", "the relay did not learn in time whether the device received it")),
        (
            ["queued", "bus_unavailable"],
            Outcome("not_sent", "the relay's instances cannot reach each other", waited=True),
        ),
    ],
)
async def test_command_returns_its_outcome(
    server: PlainServer, opened: Open, statuses: list[str], outcome: Outcome
) -> None:
    commands: list[dict[str, Any]] = []
    async with opened() as app, trio.open_nursery() as nursery:

        async def relay() -> None:
            commands.append(await answered(await join(server), *statuses))

        nursery.start_soon(relay)
        assert await app.command("set_temp", boiler="brew", temp=93.0, timeout_s=5) == outcome
    (command,) = commands
    assert {**command, "requestId": "", "notAfter": 0} == {
        "type": "command",
        "cmd": "set_temp",
        "boiler": "brew",
        "temp": 93.0,
        "requestId": "",
        "notAfter": 0,
    }
    # By the relay's clock.
    assert 1_700_000_004_000 < command["notAfter"] <= 1_700_000_005_000
    assert outcome.delivered is (outcome.fate == "delivered")


@pytest.mark.parametrize("statuses", [[], ["queued"]])
async def test_unanswered_command_is_unknown_after_its_timeout(
    server: PlainServer, opened: Open, statuses: list[str], steady_clock: SteadyClock
) -> None:
    async with opened() as app, trio.open_nursery() as nursery:
        peer = await join(server)
        nursery.start_soon(answered, peer, *statuses)
        began_s = trio.current_time()
        outcome = await app.command("tare", timeout_s=0.2)
        assert trio.current_time() - began_s == pytest.approx(0.3, abs=0.1)
        assert (outcome.fate, outcome.waited) == ("unknown", bool(statuses))


async def test_command_on_a_broken_connection_is_unknown_at_once(server: PlainServer, opened: Open) -> None:
    async with opened() as app, trio.open_nursery() as nursery:
        peer = await join(server)

        async def cut() -> None:
            await peer.receive_kind("command")
            await peer.cut()

        nursery.start_soon(cut)
        with trio.fail_after(3):
            outcome = await app.command("tare", timeout_s=60)
        assert outcome.fate == "unknown"
        assert "broke" in outcome.reason


async def test_command_without_a_connection_is_not_sent(server: PlainServer, opened: Open) -> None:
    server.refusals = [(503, {})] * 100
    async with opened() as app:
        outcome = await app.command("tare", timeout_s=0.1)
        assert outcome.fate == "not_sent"
        assert "503" in outcome.reason
    async with opened(enabled=False) as app:
        assert await app.command("tare", timeout_s=0) == Outcome("not_sent", "the link is disabled")


async def test_command_interrupted_while_sending_is_unknown(
    server: PlainServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as app:
        peer = await join(server)
        await show(peer, STATUS)
        await app.state()
        monkeypatch.setattr(app._link, "_websocket", None)
        assert await app.command("tare") == Outcome("unknown", "the connection broke")


@pytest.mark.parametrize("field", ["type", "requestId", "notAfter"])
async def test_reserved_field_of_a_command_is_refused(server: PlainServer, opened: Open, field: str) -> None:
    async with opened() as app:
        with pytest.raises(ValueError, match=f"'{field}' cannot be a field"):
            await app.command("tare", **{field: 1})


async def test_too_large_command_is_not_sent(server: PlainServer, opened: Open) -> None:
    async with opened() as app:
        await join(server)
        with pytest.raises(ValueError, match="the relay accepts at most 4096"):
            await app.command("tare", pad="x" * 4096)


# Ends


async def test_rejected_token_stops_the_link(server: PlainServer, opened: Open) -> None:
    async with opened() as app:
        peer = await server.accept()
        await peer.close(4002, "the token has expired")
        stopped = await app.wait_for_state(LinkState.STOPPED)
        assert stopped.close_code == 4002
        with pytest.raises(LinkStopped, match="the token has expired"):
            await anext(app)
        with pytest.raises(LinkStopped):
            await app.state()
        with pytest.raises(LinkStopped):
            await app.command("tare")
        app.kick()
        await join(server)
        assert len(server.asked) == 2


async def test_waiting_tasks_raise_link_stopped(server: PlainServer, opened: Open) -> None:
    async with opened() as app, trio.open_nursery() as nursery:
        peer = await join(server)

        async def stop() -> None:
            await peer.close(4002, "over")

        nursery.start_soon(stop)
        with pytest.raises(LinkStopped):
            await app.state(timeout_s=60)


@pytest.mark.parametrize("end", ["403", "4003"])
async def test_without_access_it_reconnects_after_a_long_pause(
    server: PlainServer, opened: Open, end: str
) -> None:
    if end == "403":
        server.refusals = [(403, {})]
    async with opened() as app:
        if end == "4003":
            peer = await server.accept()
            await peer.close(4003, "no access any more")
        waiting = await app.wait_for_state(LinkState.WAITING)
        assert (waiting.http_status or waiting.close_code) == int(end)
        assert waiting.next_attempt_at_s is not None
        assert 290 < waiting.next_attempt_at_s - trio.current_time() <= 360
        app.kick()
        await join(server)


async def test_without_access_it_stops_after_12_attempts(
    server: PlainServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "LONG_PAUSE_S", 0.01)
    server.refusals = [(403, {})] * 12
    async with opened() as app:
        with trio.fail_after(5):
            stopped = await app.wait_for_state(LinkState.STOPPED)
        assert stopped.http_status == 403
        assert server.refusals == []
        with pytest.raises(LinkStopped):
            await app.state()
        app.kick()
        await join(server)


async def test_access_given_back_resets_the_attempts(
    server: PlainServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "LONG_PAUSE_S", 0.01)
    async with opened() as app:
        for _ in range(2):
            server.refusals = [(403, {})] * 11
            with trio.fail_after(5):
                peer = await join(server)
            await peer.close(1012)
            app.kick()
        await join(server)


async def test_other_ends_reconnect_when_the_relay_asks(
    server: PlainServer, opened: Open, steady_clock: SteadyClock
) -> None:
    server.refusals = [(500, {})]
    async with opened() as app:
        peer = await join(server)
        await peer.send(type="restarting", reconnectInMs=400)
        at_s = trio.current_time()
        await peer.close(1012)
        await join(server)
        assert trio.current_time() - at_s == pytest.approx(0.4, abs=0.15)
        assert app.connections == 2


async def test_invalid_url_or_id_raises_at_once() -> None:
    for url, device_id in (("relay", DEVICE_ID), ("http://127.0.0.1", "kitchen")):
        with pytest.raises(SettingsError):
            async with open_app(url, "t", device_id):
                pass  # pragma: no cover


# Tokens


class Tokens:
    """A function that returns one token after the other."""

    def __init__(self, *tokens: str | Exception) -> None:
        self._tokens = list(tokens)
        self.asked = 0

    async def __call__(self) -> str:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        token = self._tokens.pop(0) if len(self._tokens) > 1 else self._tokens[0]
        if isinstance(token, Exception):
            raise token
        return token


async def test_expiring_token_is_replaced_on_the_connection(
    server: PlainServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "_RENEW_AGAIN_S", 0.01)
    tokens = Tokens("one", RelayUnreachable("not now"), "two", "two", "three")
    async with opened(tokens) as app:
        peer = await join(server)
        for _ in range(2):
            await peer.send(type="token_expiring", expiresIn=300)
            if _ == 0:
                assert (await peer.receive())["token"] == "two"
        await until(lambda: tokens.asked == 4)
        await peer.send(type="token_expiring", expiresIn=300)
        assert await peer.receive() == {"type": "refresh_auth", "token": "three"}  # "two" was not sent again
        await peer.send(type="auth_refreshed", success=True)
        await peer.cut()
        peer = await join(server)
        assert peer.parameters["token"] == "three"
        assert app.connections == 2


async def test_rejected_new_token_is_logged(
    server: PlainServer, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened() as app:
        peer = await join(server)
        await peer.send(type="auth_refreshed", success=False, error="the token belongs to another user")
        await peer.send(type="end")
        while (await anext(app))["type"] != "end":
            pass
        assert "another user" in caplog.text


async def test_without_a_new_token_the_connection_continues_until_expiry(
    server: PlainServer, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(Tokens("one", SignInEnded("signed out"))) as app:
        peer = await join(server)
        await peer.send(type="token_expiring", expiresIn=300)
        await until(lambda: "signed out" in caplog.text)
        await peer.send(type="keepalive")
        while (await anext(app))["type"] != "keepalive":
            pass
        await peer.close(4002, "the token has expired")
        stopped = await app.wait_for_state(LinkState.STOPPED)
        assert "signed out" in stopped.reason


async def test_rejected_token_is_replaced_by_a_fresh_one(server: PlainServer, opened: Open) -> None:
    async with opened(Tokens("one", "two", "three")) as app:
        peer = await join(server)
        await peer.close(4002, "the token has expired")
        peer = await join(server)
        assert peer.parameters["token"] == "two"
        await peer.close(4002, "the token has expired")  # it was greeted: this is no second one in a row
        peer = await join(server)
        assert peer.parameters["token"] == "three"
        assert app.connections == 3


async def test_rejected_fresh_tokens_stop_the_link(server: PlainServer, opened: Open) -> None:
    async with opened(Tokens("one", "two", "three")) as app:
        for _ in range(2):
            peer = await server.accept()
            await peer.close(4002, "the token is not signed by us")
        assert (await app.wait_for_state(LinkState.STOPPED)).close_code == 4002


async def test_function_without_another_token_stops_the_link(server: PlainServer, opened: Open) -> None:
    async with opened(Tokens("one")) as app:
        peer = await server.accept()
        await peer.close(4002, "the token has expired")
        stopped = await app.wait_for_state(LinkState.STOPPED)
        assert "has no other" in stopped.reason


async def test_other_exceptions_of_the_function_leave_the_block(server: PlainServer, opened: Open) -> None:
    for error in (ValueError("a mistake"), SettingsError("no")):
        with pytest.raises(type(error)):
            async with opened(Tokens(error)):
                await trio.sleep_forever()
