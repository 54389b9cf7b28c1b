import json
import os
import resource
import socket
import sqlite3
import ssl
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay import messages
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.messages import Message
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import Device, NewDevice
from brewos_relay.registry.store import Store
from brewos_relay.server.http import HttpSide
from brewos_relay.vocabulary import now_ms
from brewos_relay.wire.frames import PING_FRAME
from brewos_relay.wire.transport import WriteBatch
from support.certificates import write_certificate
from support.late_answers import late
from support.process import KEY, HereServer, machine_id, serve_here, serve_process
from support.tls_client import TlsClient
from support.wire_client import Ended, upgrade_head

MACHINE = machine_id(1)
DEVICE = f"/ws/device?id={MACHINE}&key={KEY}"
HEALTH = b"GET /api/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def test_a_broken_registry_is_answered_with_503(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        with closing(sqlite3.connect(tmp_path / "brewos-relay.db")) as database, database:
            database.execute("ALTER TABLE devices RENAME TO elsewhere")
        with trio.fail_after(4):
            for target in (DEVICE, f"/ws/client?token={server.token()}&device={MACHINE}"):
                response = await (await server.connect()).ask(upgrade_head(target))
                assert response.status == 503
                assert response.header("retry-after")
                assert response.header("connection") == ["close"]
                assert b"200 " not in response.head + response.body
        assert (await (await server.connect()).ask(HEALTH)).status == 200
        with closing(sqlite3.connect(tmp_path / "brewos-relay.db")) as database, database:
            database.execute("ALTER TABLE elsewhere RENAME TO devices")
        await server.device(MACHINE)


async def test_peers_are_admitted_while_the_registry_is_locked(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        database = sqlite3.connect(tmp_path / "brewos-relay.db", isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        with trio.fail_after(1):
            for _ in range(3):
                await server.device(MACHINE)
                await server.client(MACHINE, token=server.token([MACHINE]))
        database.execute("ROLLBACK")
        database.close()


async def test_a_registry_that_never_answers_is_503_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find_device(self: Store, device_id: str) -> Device | None:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(Store, "ask_device", late(find_device))
    async with serve_here(tmp_path, admission_s=0.1) as server:
        with trio.fail_after(2):
            response = await (await server.connect()).ask(upgrade_head(DEVICE))
        assert response.status == 503


async def test_a_defect_ends_one_connection_and_is_logged_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def find_device(self: Store, device_id: str) -> Device | None:
        raise ZeroDivisionError

    async with serve_here(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "ask_device", late(find_device))
            connection = await server.connect()
            with pytest.raises(Ended):
                await connection.ask(upgrade_head(DEVICE))
        await server.device(MACHINE)
    assert "ZeroDivisionError" in caplog.text
    assert KEY not in caplog.text


async def test_no_peer_is_admitted_and_then_dropped_by_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def connected_device(timestamp_ms: int) -> Message:
        raise ZeroDivisionError

    async with serve_here(tmp_path) as server:
        with monkeypatch.context() as patch:
            patch.setattr(messages, "connected_device", connected_device)
            connection = await server.connect()
            await connection.send(upgrade_head(DEVICE))
            assert await connection.read_to_end() == b""
        await server.device(MACHINE)
        health = await (await server.connect()).ask(HEALTH)
    assert json.loads(health.body)["devices"] == 1
    assert "ZeroDivisionError" in caplog.text


async def test_a_relay_that_begins_to_drain_during_the_lookup_admits_no_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = trio.Event(), trio.Event()

    async def find_device(self: Store, device_id: str) -> Device | None:
        asked.set()
        await answer.wait()
        return Device(id=device_id, key_hash=hash_secret(KEY), name=None, created_at_ms=1, last_seen_ms=None)

    monkeypatch.setattr(Store, "ask_device", late(find_device))
    async with serve_here(tmp_path) as server:
        connection = await server.connect()
        await connection.send(upgrade_head(DEVICE))
        await asked.wait()
        await server.server.relay.drain()
        answer.set()
        assert (await connection.read_response()).status == 503


async def test_a_peer_that_leaves_during_the_lookup_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked, answer = trio.Event(), trio.Event()

    async def find_device(self: Store, device_id: str) -> Device | None:
        asked.set()
        await answer.wait()
        return Device(id=device_id, key_hash=hash_secret(KEY), name=None, created_at_ms=1, last_seen_ms=None)

    monkeypatch.setattr(Store, "ask_device", late(find_device))
    async with serve_here(tmp_path) as server:
        connection = await server.connect()
        await connection.send(upgrade_head(DEVICE))
        await asked.wait()
        connection.abort()
        answer.set()
        client = await server.client(MACHINE)
        while client.connected["deviceOnline"]:
            client = await server.client(MACHINE)
        assert server.server.relay.device_count == 0
    assert "ERROR" not in caplog.text


async def test_a_server_that_leaves_refuses_and_still_tells_its_health(tmp_path: Path) -> None:
    async with serve_here(tmp_path, device_min_age_s=0.5) as server:
        await server.device(MACHINE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.server.relay.drain)
            await trio.testing.wait_all_tasks_blocked()
            for target in (DEVICE, f"/ws/client?token={server.token()}&device={MACHINE}"):
                response = await (await server.connect()).ask(upgrade_head(target))
                assert response.status == 503
                assert response.header("retry-after")
            assert (await (await server.connect()).ask(HEALTH)).status in {200, 503}


class TestOverTls:
    """TLS changes nothing for peers, and a stalled handshake affects only its own connection."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> dict[str, Any]:
        files = write_certificate(tmp_path)
        return {"tls_cert": files.cert, "tls_key": files.key}

    async def connect(self, server: HereServer) -> TlsClient:
        sock = (await server.connect()).stream.socket
        return TlsClient(socket.socket(fileno=socket.dup(sock.fileno())))

    async def test_a_machine_and_an_app_talk(self, tmp_path: Path, settings: dict[str, Any]) -> None:
        async with serve_here(tmp_path, settings=settings) as server:
            machine, app = await self.connect(server), await self.connect(server)
            with machine.sock, app.sock:
                await machine.shake_hands()
                await machine.send(upgrade_head(DEVICE))
                assert (await machine.read_record()).startswith(b"HTTP/1.1 101 ")
                await machine.send(b"\x89\x80" + bytes(4))
                received = b""
                while not received.endswith(b"\x8a\0"):
                    received += await machine.read_record()
                await app.shake_hands()
                await app.send(upgrade_head(f"/ws/client?token={server.token([MACHINE])}&device={MACHINE}"))
                assert (await app.read_record()).startswith(b"HTTP/1.1 101 ")
                await app.send(b"\x81\x8f" + bytes(4) + b'{"type":"tare"}')
                received = b""
                while b'{"type":"tare"}' not in received:
                    received += await machine.read_record()

    async def test_a_request_in_six_records_is_answered_in_one(
        self, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        async with serve_here(tmp_path, settings=settings) as server:
            client = await self.connect(server)
            with client.sock:
                await client.shake_hands()
                for line in (b"GET /api/health HTTP/1.1", b"Host: a", b"Accept: */*", b"X-A: b"):
                    await client.send(line + b"\r\n")
                await client.send(b"Connection: close\r\n")
                await client.send(b"\r\n")
                answer = await client.read_record()
                head, _, body = answer.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                assert body.startswith(b"{")
                assert body.endswith(b"}")
                assert await client.read_record() == b"", "the end, with close_notify"

    async def test_plain_http_at_the_tls_port_gets_a_hint(
        self, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        async with serve_here(tmp_path, settings=settings) as server:
            response = await (await server.connect()).ask(HEALTH)
            assert response.status == 400
            assert b"this port speaks HTTPS" in response.body

    async def test_peers_that_stall_or_leave_mid_request_do_no_harm(
        self, tmp_path: Path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        async with serve_here(tmp_path, settings=settings, request_head_s=1.0) as server:
            others = [await self.connect(server) for _ in range(8)]
            for number, other in enumerate(others):
                with pytest.raises(ssl.SSLWantReadError):
                    other.tls.do_handshake()
                await other.send_raw(other.outgoing.read()[: 40 * (number + 1)])
                if number % 2:
                    other.sock.close()
            client = await self.connect(server)
            with client.sock:
                await client.shake_hands()
                await client.send(HEALTH)
                assert (await client.read_record()).startswith(b"HTTP/1.1 200 ")
            for other in others[::2]:
                while not other.ended:
                    await other.read_socket()
                other.sock.close()
        assert "ERROR" not in caplog.text


async def test_the_101_and_the_first_messages_share_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    leave = WriteBatch.__exit__

    def noting(self: WriteBatch, *exception: object) -> None:
        sent.extend(transport._held or b"" for transport in self.held)
        leave(self, *exception)

    monkeypatch.setattr(WriteBatch, "__exit__", noting)
    async with serve_here(tmp_path) as server:
        for target, said_last in (
            (DEVICE, PING_FRAME),
            (f"/ws/client?token={server.token()}&device={MACHINE}", b"}"),
        ):
            await server.upgrade(target)
            (came,) = (data for data in sent if data.startswith(b"HTTP/1.1 101 "))
            assert b'"type":"connected"' in came
            assert came.endswith(said_last)
            sent.clear()


async def test_many_simultaneous_connections_are_admitted(tmp_path: Path) -> None:
    numbers = range(1, 201)
    async with serve_here(tmp_path, machines=numbers) as server, trio.open_nursery() as nursery:
        for number in numbers:
            nursery.start_soon(server.device, machine_id(number))


@pytest.mark.skipif(
    not hasattr(resource, "prlimit") or not Path("/proc/self/fd").exists(), reason="needs Linux"
)
async def test_accepting_continues_after_the_process_was_out_of_files(tmp_path: Path) -> None:
    with trio.fail_after(30):
        async with serve_process(tmp_path) as server:
            url = f"sqlite:///{tmp_path / 'data' / 'brewos-relay.db'}"
            with Database.open(url) as database, database.writing() as db:
                add_devices(db, [NewDevice(id=MACHINE, key_hash=hash_secret(KEY))], now_ms=now_ms())
            device = await server.device(MACHINE)
            client = await server.client(MACHINE)
            files = len(os.listdir(f"/proc/{server.process.pid}/fd"))  # noqa: PTH208
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (files + 5, files + 5))
            connections = [await server.connect() for _ in range(20)]
            while "cannot accept" not in server.log_file.read_text():  # noqa: ASYNC110 - another process
                await trio.sleep(0.01)
            await client.send(b"\x81\x8f" + bytes(4) + b'{"type":"tare"}')
            assert await device.read_json() == {"type": "tare"}
            for connection in connections:
                connection.abort()
            await server.client(MACHINE)
            assert server.process.poll() is None


async def test_a_request_that_is_throttled_is_refused_before_the_http_side_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[bytes] = []
    take = HttpSide.take

    def note(self: HttpSide, stream: trio.abc.Stream, initial: bytes, **told: Any) -> None:
        taken.append(initial.partition(b"\r\n")[0])
        take(self, stream, initial, **told)

    monkeypatch.setattr(HttpSide, "take", note)
    sign_in = b"POST /api/auth/password HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    sign_in += b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
    async with serve_here(tmp_path, within_s=20) as server:
        statuses = []
        for _ in range(RequestLimits().sign_ins.burst + 2):
            answer = await (await server.connect()).ask(sign_in)
            statuses.append(answer.status)
        assert set(statuses[:-2]) == {400}
        # The budget may have regained one meanwhile.
        assert len(taken) in {len(statuses) - 1, len(statuses) - 2}
        assert answer.status == 429
        assert int(answer.header("retry-after")[0]) > 0
        assert "Too many attempts to sign in" in json.loads(answer.body)["error"]
        # Nothing else is affected.
        assert (await (await server.connect()).ask(HEALTH)).status == 200
