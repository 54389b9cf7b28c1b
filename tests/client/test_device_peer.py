"""Tests of client.device, against a server of the `websockets` library."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.client import reconnecting_link as link_module
from brewos_relay.client.backoff import Backoff
from brewos_relay.client.deltas import Deltas
from brewos_relay.client.device_peer import Device, open_device
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.key_store import Keys, KeyStore, KeyStoreError
from brewos_relay.client.reconnecting_link import LinkState, LinkStopped
from brewos_relay.client.websocket import RelayRefused
from brewos_relay.errors import SettingsError
from brewos_relay.messages import Message
from support.plain_websockets import Peer, PlainServer, open_plain_server

DEVICE_ID = "BRW-0000ABCD"
OLD, NEW, NEWER = ("a" * 43, "b" * 43, "c" * 43)
DEADLINE_S = 10.0


@pytest.fixture
async def server() -> AsyncIterator[PlainServer]:
    async with open_plain_server() as server:
        yield server


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    (tmp_path / "key.json").touch(mode=0o600)
    (tmp_path / "key.json").write_text(f'{{"key":"{OLD}"}}')
    return KeyStore(tmp_path / "key.json")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "Backoff", lambda: Backoff(first_s=0.05, longest_s=0.1))
    monkeypatch.setattr(link_module, "_AT_ONCE_S", 0.01)


Open = Callable[..., AbstractAsyncContextManager[Device]]


@pytest.fixture
def opened(server: PlainServer, keys: KeyStore) -> Open:
    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Device]:
        with trio.fail_after(DEADLINE_S):
            async with open_device(server.url, DEVICE_ID, keys, report_every_s=0.02, **options) as device:
                yield device

    return opened


async def on_status(peer: Peer, *cmds: str) -> None:
    for cmd in cmds:
        await peer.send(type="command", cmd=cmd)


async def test_device_sends_and_receives(server: PlainServer, opened: Open) -> None:
    async with opened() as device:
        peer = await server.accept()
        assert server.asked == [{"path": "/ws/device", "id": DEVICE_ID, "key": OLD}]
        await peer.greet()
        await device.wait_for_state(LinkState.CONNECTED)
        assert device.connected
        assert device.connections == 1
        assert await device.send({"type": "log", "message": "here"})
        assert await peer.receive() == {"type": "log", "message": "here"}
        assert await device.send(Message(b"\x81\xa4type\xa1x", is_text=False))
        assert await peer.receive() == {"type": "x"}
        await peer.connection.send("nonsense")
        await peer.connection.send('{"type":5}')
        await peer.send(type="command", cmd="set_temp", boiler="brew", temp=93.5)
        await peer.send(type="request_state")
        await peer.send(type="command")
        command = await anext(device)
        assert (command.kind, command.name, command["temp"]) == ("command", "set_temp", 93.5)
        assert command.content["boiler"] == "brew"
        assert (command.get("boiler"), command.get("pad", 1)) == ("brew", 1)
        assert command.received_at_s <= trio.current_time()
        async for command in device:
            if command.name == "command":
                break
            assert (command.kind, command.name) == ("request_state", "request_state")
    with pytest.raises(Exception, match="1000"):
        await peer.receive()


async def test_device_reconnects_after_every_end(server: PlainServer, opened: Open) -> None:
    server.refusals = [(401, {}), (503, {"Retry-After": "0"}), (409, {}), (500, {})]
    async with opened() as device:
        for end in (Peer.close, Peer.cut, lambda peer: peer.close(4003), lambda peer: peer.close(1012)):
            peer = await server.accept()
            await device.wait_for_state(LinkState.CONNECTED)
            await end(peer)
            waiting = await device.wait_for_state(LinkState.WAITING)
        assert waiting.close_code == 1012
        await server.accept()
        await device.wait_for_state(LinkState.CONNECTED)
        assert device.connections == 5
    assert {asked["key"] for asked in server.asked} == {OLD}


async def test_replaced_device_stops(server: PlainServer, opened: Open) -> None:
    async with opened() as device:
        peer = await server.accept()
        await on_status(peer, "tare")
        await peer.close(4002, "another connection took its place")
        stopped = await device.wait_for_state(LinkState.STOPPED)
        assert stopped.close_code == 4002
        assert (await anext(device)).name == "tare"
        with pytest.raises(LinkStopped, match="took its place"):
            await anext(device)
        device.kick()
        await server.accept()
        await device.wait_for_state(LinkState.CONNECTED)
        with trio.move_on_after(0.05) as waiting:
            await anext(device)
        assert waiting.cancelled_caught


async def test_device_can_be_paused_and_disabled(server: PlainServer, opened: Open) -> None:
    async with opened(enabled=False) as device:
        assert not device.enabled
        device.enabled = True
        peer = await server.accept()
        device.pause()
        await device.wait_for_state(LinkState.PAUSED)
        with pytest.raises(Exception, match="1000"):
            await peer.receive()
        assert not await device.send({"type": "log"})
        device.resume()
        await server.accept()
        assert (await anext(device.statuses())).state in LinkState


async def test_send_waits_for_a_connection_on_request(server: PlainServer, opened: Open) -> None:
    server.refusals = [(503, {})]
    async with opened() as device:
        await device.wait_for_state(LinkState.WAITING)
        assert not await device.send({"type": "log", "message": "dropped"})
        assert await device.send({"type": "log", "message": "kept"}, wait=True)
        peer = await server.accept()
        assert (await peer.receive())["message"] == "kept"


async def test_registers_until_it_succeeds_before_connecting(server: PlainServer, opened: Open) -> None:
    calls: list[int] = []

    async def register() -> None:
        await trio.lowlevel.checkpoint()
        calls.append(len(server.asked))
        if len(calls) == 1:
            raise RelayUnreachable("not yet")
        if len(calls) == 2:
            raise RelayRefused(429, retry_after_s=0.1)

    async with opened(register=register):
        peer = await server.accept()
        await peer.cut()
        await server.accept()
    assert calls == [0, 0, 0]


async def test_other_exceptions_of_register_leave_the_block(server: PlainServer, opened: Open) -> None:
    async def register() -> None:
        raise SettingsError("no TLS")

    with pytest.raises(SettingsError, match="no TLS"):
        async with opened(register=register):
            await trio.sleep_forever()


async def test_exception_of_the_block_is_unwrapped(server: PlainServer, opened: Open) -> None:
    with pytest.raises(ValueError, match="mine"):  # noqa: PT012
        async with opened():
            await server.accept()
            raise ValueError("mine")


async def test_several_exceptions_stay_a_group(server: PlainServer, opened: Open) -> None:
    async def register() -> None:
        raise ValueError("one")

    with pytest.RaisesGroup(ValueError, ValueError, flatten_subgroups=True):
        async with opened(register=register):
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("two")


async def test_invalid_key_file_raises(server: PlainServer, opened: Open, keys: KeyStore) -> None:
    keys.path.write_text("nonsense")
    with pytest.raises(KeyStoreError, match="is not a key file"):
        async with opened():
            await trio.sleep_forever()


@pytest.mark.parametrize(("url", "device_id"), [("relay", DEVICE_ID), ("http://127.0.0.1", "BRW-1")])
async def test_invalid_arguments_raise_at_once(keys: KeyStore, url: str, device_id: str) -> None:
    with pytest.raises(SettingsError):
        async with open_device(url, device_id, keys):
            pass  # pragma: no cover


# Commands for a program that is busy


async def test_commands_wait_in_a_bounded_queue(
    server: PlainServer, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(commands_at_most=2) as device:
        peer = await server.accept()
        await on_status(peer, "first", "second", "third")
        await peer.send(type="request_state")
        log = await peer.receive()
        assert (log["type"], log["level"]) == ("log", "warn")
        assert log["message"].startswith("third was dropped")
        assert "dropped 'third'" in caplog.text
        assert [(await anext(device)).name for _ in range(2)] == ["first", "second"]
        await on_status(peer, "fourth")
        assert (await anext(device)).name == "fourth"
        assert device.dropped_commands == 2


async def test_expired_command_is_not_returned(server: PlainServer, opened: Open) -> None:
    async with opened() as device:
        peer = await server.accept()
        await peer.greet()  # by the relay's clock, it is 2023
        await peer.send(type="command", cmd="late", notAfter=1_700_000_000_000 - 1)
        await peer.send(type="command", cmd="in_time", notAfter=1_700_000_000_000 + 60_000)
        assert (await anext(device)).name == "in_time"


# Reports


async def test_reports_changes_and_the_whole_state_on_request(server: PlainServer, opened: Open) -> None:
    async with opened() as device:
        device.report({"pressure": 1.0, "machine": {"state": "idle"}}, occasional={"stats": {}})
        peer = await server.accept()
        await peer.greet()
        assert await peer.receive() == {
            "type": "status",
            "seq": 1,
            "pressure": 1.0,
            "machine": {"state": "idle"},
        }
        for pressure in (2.0, 3.0, 9.0):
            device.report({"pressure": pressure, "machine": {"state": "idle"}})
        assert await peer.receive() == {"type": "status_delta", "seq": 2, "pressure": 9.0}
        await peer.send(type="request_full_status")
        assert (await peer.receive())["type"] == "status"
        await peer.cut()
        peer = await server.accept()
        assert (await peer.receive())["seq"] == 4
        assert device.deltas.seq == 4


async def test_idle_device_sends_keepalives(
    server: PlainServer, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brewos_relay.client.device_peer._LOOK_EVERY_S", 0.02)
    async with opened(deltas=Deltas(keepalive_s=0.05)) as device:
        device.report({"pressure": 1.0})
        peer = await server.accept()
        assert [(await peer.receive())["type"] for _ in range(2)] == ["status", "keepalive"]


# Keys


async def rotate(peer: Peer, key: Any) -> None:
    await peer.greet()
    await peer.send(type="key_rotate", key=key)


async def test_new_key_is_stored_and_used_before_the_old_one_is_dropped(
    server: PlainServer, opened: Open, keys: KeyStore
) -> None:
    async with opened() as device:
        peer = await server.accept()
        await rotate(peer, NEW)
        with pytest.raises(Exception, match="1000"):
            await peer.receive()
        peer = await server.accept()
        assert peer.parameters["key"] == NEW
        await device.wait_for_state(LinkState.CONNECTED)
        assert KeyStore(keys.path).load() == Keys(OLD, NEW)  # let in, but not greeted
        await peer.greet()
        await on_status(peer, "tare")
        await anext(device)
        assert KeyStore(keys.path).load() == Keys(NEW)


async def test_refused_new_key_falls_back_to_the_old_one(
    server: PlainServer, opened: Open, keys: KeyStore
) -> None:
    async with opened() as device:
        peer = await server.accept()
        server.refusals = [(401, {})]
        await rotate(peer, NEW)
        peer = await server.accept()
        assert [asked["key"] for asked in server.asked] == [OLD, NEW, OLD]
        assert KeyStore(keys.path).load() == Keys(OLD, NEW)
        await peer.greet()
        await on_status(peer, "tare")
        await anext(device)
        assert KeyStore(keys.path).load() == Keys(OLD)


async def test_two_keys_take_turns_until_one_is_accepted(
    server: PlainServer, opened: Open, keys: KeyStore
) -> None:
    keys.add_next(NEW)
    server.refusals = [(401, {}), (401, {}), (503, {}), (401, {})]
    async with opened():
        await server.accept()
    assert [asked["key"] for asked in server.asked] == [NEW, OLD, NEW, NEW, OLD]


async def test_crash_after_a_key_change_keeps_a_working_key(
    server: PlainServer, opened: Open, keys: KeyStore
) -> None:
    keys.add_next(NEW)  # as it is after a crash before the greeting
    async with opened() as device:
        peer = await server.accept()
        assert peer.parameters["key"] == NEW
        await peer.greet()
        await on_status(peer, "tare")
        await anext(device)
        await rotate(peer, NEWER)
        peer = await server.accept()
        assert peer.parameters["key"] == NEWER
    assert KeyStore(keys.path).load() == Keys(NEW, NEWER)


@pytest.mark.parametrize("key", [None, "short", 5, OLD])
async def test_invalid_new_key_is_ignored(
    server: PlainServer, opened: Open, keys: KeyStore, key: Any
) -> None:
    async with opened() as device:
        peer = await server.accept()
        await rotate(peer, key)
        await on_status(peer, "tare")
        assert (await anext(device)).name == "tare"
        assert device.connections == 1
    assert KeyStore(keys.path).load() == Keys(OLD)


async def test_key_that_cannot_be_stored_is_not_used(
    server: PlainServer,
    opened: Open,
    keys: KeyStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: Any) -> None:
        raise KeyStoreError("the disk is full")

    caplog.set_level(logging.ERROR)
    async with opened() as device:
        peer = await server.accept()
        with monkeypatch.context() as patch:
            patch.setattr("brewos_relay.client.key_store.write_private", full)
            await rotate(peer, NEW)
            await on_status(peer, "tare")
            assert (await anext(device)).name == "tare"
        assert device.connections == 1
        assert "keeps its key" in caplog.text
        assert NEW not in caplog.text
        await rotate(peer, NEW)
        with monkeypatch.context() as patch:
            peer = await server.accept()
            patch.setattr("brewos_relay.client.key_store.write_private", full)
            await peer.greet()
            await on_status(peer, "tare")
            await anext(device)
            assert "keeps both keys" in caplog.text


async def test_reconnects_when_the_relay_asks(server: PlainServer, opened: Open) -> None:
    async with opened() as device:
        peer = await server.accept()
        await peer.send(type="restarting", reconnectInMs=500)
        await on_status(peer, "tare")
        await anext(device)
        at_s = trio.current_time()
        await peer.close(1012)
        waiting = await device.wait_for_state(LinkState.WAITING)
        assert waiting.next_attempt_at_s is not None
        assert waiting.next_attempt_at_s - at_s == pytest.approx(0.5, abs=0.1)
