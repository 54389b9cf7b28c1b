"""Tests of doctor.canary: its device is removed in every case."""

import re
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.doctor import canary
from brewos_relay.doctor.canary import NAME, send_canary
from brewos_relay.errors import DeviceExists, RegistryError
from brewos_relay.registry.access import give
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, all_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.settings import Settings
from brewos_relay.vocabulary import generate_key, now_ms
from brewos_relay.wire.handshake import HEAD_END, Refusal, accept_upgrade, parse_head
from support.process import SECRET, environment, run_command
from support.waiting import until

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(jwt_secret=SECRET, data_dir=tmp_path)
    Database.open(settings.resolved_database_url()).close()
    return settings


def names(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "brewos-relay.db")) as db:
        return [name for (name,) in db.execute("SELECT name FROM devices")]


async def hang(_stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def accept_and_die(stream: trio.SocketStream) -> None:
    head = b""
    while HEAD_END not in head:
        head += await stream.receive_some()
    with suppress(Refusal):  # not a WebSocket
        await stream.send_all(accept_upgrade(parse_head(head.partition(HEAD_END)[0])))


@asynccontextmanager
async def fake_relay(answers: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Open a port whose connections are passed to `answers`, and then closed."""
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answers, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
async def test_signal_during_the_canary_leaves_no_device(
    settings: Settings, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with trio.fail_after(40):
        async with fake_relay(hang) as url, trio.open_nursery() as nursery:
            command = [
                sys.executable,
                "-m",
                "brewos_relay",
                "doctor",
                "--url",
                url,
                "--data-dir",
                str(tmp_path),
            ]
            doctor = await nursery.start(
                partial(
                    trio.run_process,
                    command,
                    env=environment(PORT=0),
                    cwd=tmp_path,
                    check=False,
                    capture_stderr=True,
                )
            )
            await until(lambda: names(tmp_path) == [NAME])
            doctor.send_signal(number)
            assert await doctor.wait() == code
    assert names(tmp_path) == []


async def test_server_that_dies_during_the_canary_is_reported(settings: Settings, tmp_path: Path) -> None:
    async with fake_relay(accept_and_die) as url:
        ran = await run_command(tmp_path, "doctor", "--url", url, "--data-dir", str(tmp_path), PORT=0)
    assert ran.returncode == 1
    assert re.search(rb"failed +canary +\S+: the connection was lost\n.*read the server's log", ran.stdout)
    assert names(tmp_path) == []


def test_device_of_a_killed_canary_is_removed_by_the_next_one(settings: Settings, tmp_path: Path) -> None:
    def new(number: int, name: str) -> NewDevice:
        return NewDevice(id=f"BRW-0000000{number}", key_hash=hash_secret(generate_key()), name=name)

    with Database.open(settings.resolved_database_url()) as database, database.writing() as db:
        add_devices(db, [new(1, NAME), new(2, NAME), new(3, "Kitchen")], now_ms=1)
        add_devices(db, [new(4, NAME)], now_ms=now_ms())
        give(db, "BRW-00000002", user_id="ada", role="owner", now_ms=1)
    (finding,) = send_canary(settings, NOWHERE, None)
    assert finding.state == "failed"
    with Database.open(settings.resolved_database_url()) as database, database.reading() as db:
        assert [device.id for device in all_devices(db)] == ["BRW-00000002", "BRW-00000003", "BRW-00000004"]


def test_existing_device_with_the_same_id_stays(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewos_relay.doctor.canary.generate_device_id", lambda: "BRW-12AB34CD")
    theirs = NewDevice(id="BRW-12AB34CD", key_hash=hash_secret(generate_key()), name="Kitchen")
    with Database.open(settings.resolved_database_url()) as database:
        with database.writing() as db:
            add_devices(db, [theirs], now_ms=1)
        (finding,) = send_canary(settings, NOWHERE, None)
        assert finding.state == "failed"
        assert "BRW-12AB34CD" in finding.text
        assert str(DeviceExists([theirs.id])) in finding.text
        with database.reading() as db:
            assert [device.name for device in all_devices(db)] == ["Kitchen"]


def test_device_that_cannot_be_removed_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_more: object) -> bool:
        raise RegistryError("the disk is full")

    monkeypatch.setattr(canary, "remove_device", fail)
    (finding,) = send_canary(settings, NOWHERE, None)
    (device,) = re.findall("BRW-[0-9A-F]{8}", finding.text)
    assert finding.state == "failed"
    assert "the disk is full" in finding.text
    assert finding.advice == f"remove it: brewos-relay device remove {device}"
