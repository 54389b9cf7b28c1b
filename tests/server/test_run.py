import dataclasses
import datetime
import gc
import hashlib
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.auth.signing_keys import load_private_key
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import RegistryError, SettingsError
from brewos_relay.registry.activity import activity_of
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.records import NewDevice
from brewos_relay.server.assembly import Server, open_server
from brewos_relay.server.incoming import LINES_AT_ONCE_OF_EACH
from brewos_relay.server.local_ca import LocalCa
from brewos_relay.settings import Settings
from brewos_relay.settings.parsing import parse_networks
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.vocabulary import now_ms
from support.certificates import client_context, write_certificate
from support.ports import free_port
from support.process import (
    KEY,
    SECRET,
    SERVE,
    HereServer,
    Reach,
    environment,
    machine_id,
    run_command,
    serve_here,
    serve_process,
)
from support.steady_clock import SteadyClock
from support.wire_client import WireClient, close, text, upgrade_head

MACHINE = machine_id(1)


def settings(folder: Path, *, host: str = "127.0.0.1", port: int = 0, **more: Any) -> Settings:
    return Settings(**{"host": host, "port": port, "jwt_secret": SECRET, "data_dir": folder, **more})


async def test_a_port_of_its_own_choice(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with open_server(settings(tmp_path)) as server:
            [(host, port)] = server.addresses
            assert host == "127.0.0.1"
            assert port > 0
            assert server.url == f"http://127.0.0.1:{port}"


async def test_all_interfaces(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with open_server(settings(tmp_path, host="")) as server:
            connection = await WireClient.connect(("127.0.0.1", server.addresses[0][1]))
            assert (await connection.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            connection.abort()


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
    ],
)
async def test_url(tmp_path: Path, address: str, url: str) -> None:
    async with serve_here(tmp_path) as here:
        assert Server([(address, 80)], here.server.relay, here.server.store).url == url


async def test_lists_of_commands_that_are_set_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        found = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        caplog.clear()
        return [warning for warning in found if "can only add commands" in warning]

    async with open_server(settings(tmp_path)):
        assert warnings() == []
    lists = ServerLimits(owner_commands=("restart", "ota_*"), never_wait=("",))
    async with open_server(settings(tmp_path, limits=lists)) as server:
        owners, never_wait = warnings()
        assert owners.startswith("BREWOS_RELAY_OWNER_COMMANDS can only add commands that are for owners only")
        assert "mqtt_config" in owners
        assert ", restart" not in owners
        assert never_wait.startswith("BREWOS_RELAY_NEVER_WAIT can only add commands that never wait")
        assert "enter_eco" in never_wait
        assert "set_mode:on" in never_wait
        assert server.relay.policy.class_of("command", "mqtt_config") == "manage"
        assert not server.relay.policy.may_wait("command", "restart")


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = settings(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            async with open_server(chosen):
                pass


@pytest.mark.parametrize("secret", ["", "short"])
async def test_no_secret(tmp_path: Path, secret: str) -> None:
    with pytest.raises(SettingsError, match="brewos-relay secret"):
        async with open_server(settings(tmp_path, jwt_secret=secret)):
            pass


async def test_no_registry(tmp_path: Path) -> None:
    with pytest.raises((RegistryError, ExceptionGroup)):
        async with open_server(settings(tmp_path, database_url="nonsense")):
            pass


async def test_an_exception_of_the_block_is_raised_and_the_port_is_freed(tmp_path: Path) -> None:
    async def fail() -> None:
        async with open_server(settings(tmp_path)) as server:
            ports.append(server.addresses[0][1])
            raise ZeroDivisionError

    ports: list[int] = []
    with trio.fail_after(5):
        with pytest.raises(ExceptionGroup) as raised:
            await fail()
        assert raised.value.split(ZeroDivisionError)[1] is None
        async with open_server(settings(tmp_path, port=ports[0])):
            pass


@asynccontextmanager
async def leaving(folder: Path, **limits: float) -> AsyncIterator[tuple[Reach, trio.Event]]:
    """Open a server that leaves once the event is set."""
    with Database.open(settings(folder).resolved_database_url()) as database, database.writing() as db:
        add_devices(db, [NewDevice(id=MACHINE, key_hash=hash_secret(KEY))], now_ms=now_ms())
    chosen = dataclasses.replace(settings(folder), limits=ServerLimits(**{"drain_s": 0.0, **limits}))  # type: ignore[arg-type]
    leave = trio.Event()

    async def serve(task_status: trio.TaskStatus[Server]) -> None:
        async with open_server(chosen) as server:
            task_status.started(server)
            await leave.wait()

    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            reach = Reach((await nursery.start(serve)).addresses[0])
            yield reach, leave
        reach.abort()


async def test_drain_closes_every_peer(tmp_path: Path) -> None:
    async with leaving(tmp_path, device_min_age_s=0.1) as (reach, leave):
        peers = await reach.client(MACHINE), await reach.device(MACHINE)
        leave.set()
        for peer in peers:
            assert (await peer.read_close())[0] == 1012
            await peer.send(close(1000))
            await peer.send_eof()
            assert await peer.read_to_end() == b""


async def test_shutdown_waits_a_limited_time_for_responses(tmp_path: Path, steady_clock: SteadyClock) -> None:
    async with leaving(tmp_path, device_min_age_s=0.1, close_s=0.2) as (reach, leave):
        await reach.client(MACHINE)
        await reach.device(MACHINE)
        began = trio.current_time()
        leave.set()
    assert trio.current_time() - began < 2


async def test_drain_does_not_wait_for_peers_that_read_nothing(
    tmp_path: Path, steady_clock: SteadyClock
) -> None:
    async with leaving(tmp_path, device_min_age_s=0.1, close_s=0.2) as (reach, leave):
        device = await reach.device(MACHINE)
        await reach.client(MACHINE, receive_buffer_bytes=2048)
        for _ in range(500):
            await device.send(text({"type": "status", "pad": "x" * 12_000}))
        began = trio.current_time()
        leave.set()
    assert trio.current_time() - began < 2


async def test_shutdown_waits_for_a_young_machine(tmp_path: Path) -> None:
    async with leaving(tmp_path, device_min_age_s=0.6, close_s=0.1, drain_s=0.1) as (reach, leave):
        began = trio.current_time()
        device = await reach.device(MACHINE)
        leave.set()
        assert (await device.read_close())[0] == 1012
        assert trio.current_time() - began >= 0.6


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
async def test_no_file_is_left_open(tmp_path: Path) -> None:
    def open_files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = None
    for folder in ("one", "two"):  # the first one opens files that stay open
        (tmp_path / folder).mkdir()
        async with serve_here(tmp_path / folder, close_s=0.2, machines=range(1, 11)) as here:
            for number in range(1, 11):
                await here.device(machine_id(number))
                await here.client(MACHINE)
                await here.client(MACHINE, token=here.token([MACHINE]))
                await (await here.connect()).send(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")
                await (await here.connect()).send(b"\xff")
                await (await here.connect()).send(b"GET")
        if before is None:
            before = open_files()
    assert open_files() == before


# TLS


def is_proxied(address: str) -> bytes:
    return f"PROXY TCP4 {address} 192.0.2.1 5555 443\r\n".encode()


async def over_tls(reach: Reach) -> WireClient:
    """Connect over TLS, checking nothing, as machines do."""
    plain = await reach.connect()
    stream = trio.SSLStream(plain.stream, client_context(), server_hostname="localhost")
    await stream.do_handshake()
    return WireClient(cast(trio.SocketStream, stream))


async def fingerprint(reach: Reach) -> str:
    """Return the fingerprint of the certificate of a new connection."""
    client = cast(Any, (await over_tls(reach)).stream)
    return hashlib.sha256(client.getpeercert(binary_form=True)).digest().hex(":").upper()


async def test_tls_changes_nothing_for_peers(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    with_tls = {"tls_cert": files.cert, "tls_key": files.key}
    async with serve_here(tmp_path, settings=with_tls) as here:
        assert here.server.url == f"https://127.0.0.1:{here.address[1]}"
        health = await (await over_tls(here)).ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert health.status == 200
        assert health.header("strict-transport-security")
        device, app = await over_tls(here), await over_tls(here)
        assert (await device.ask(upgrade_head(f"/ws/device?id={MACHINE}&key={KEY}"))).status == 101
        await device.show_life()
        target = f"/ws/client?token={here.token()}&device={MACHINE}"
        plain_page = upgrade_head(target, Origin="http://relay.example:3001")
        assert (await (await over_tls(here)).ask(plain_page)).status == 403
        own_page = upgrade_head(target, Origin="https://relay.example:3001")
        assert (await app.ask(own_page)).status == 101
        await device.send(text({"type": "status", "seq": 1}))
        assert (await app.read_until("status"))["seq"] == 1
        refused = await (await here.connect()).ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert refused.status == 400
        assert b"HTTPS" in refused.body


async def test_a_self_signed_certificate_is_made_once(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with serve_here(tmp_path, machines=(), settings={"tls_self_signed": True}) as here:
            assert here.server.tls is not None
            assert here.server.tls.certificate.is_for("localhost")
            assert here.server.tls.certificate.fingerprint == await fingerprint(here)
            seen.append(await fingerprint(here))
            # With HSTS, browsers would refuse this certificate without an exception.
            answer = await (await over_tls(here)).ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answer.header("strict-transport-security") == []
    assert seen[0] == seen[1]


async def test_a_self_signed_certificate_is_renewed_while_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brewos_relay.server.certificates._LOOK_EVERY_S", 0.02)
    monkeypatch.setattr("brewos_relay.server.certificates._RENEW_EVERY_S", 0.02)
    async with serve_here(tmp_path, settings={"tls_self_signed": True}) as here:
        before = await fingerprint(here)
        monkeypatch.setattr("brewos_relay.server.self_signed._RENEW_BEFORE", datetime.timedelta(days=400))
        while await fingerprint(here) == before:
            pass


async def test_phone_gets_the_local_ca_over_plain_http_and_trusts_the_server(tmp_path: Path) -> None:
    port = free_port()
    chosen = {"tls_self_signed": True, "redirect_port": port, "public_url": "https://coffee.example"}
    async with serve_here(tmp_path, settings=chosen) as here:
        ca = LocalCa.load(tmp_path)
        assert ca is not None
        plain = Reach(("127.0.0.1", port))
        answer = await (await plain.connect()).ask(b"GET /ca.crt HTTP/1.1\r\nHost: coffee.example\r\n\r\n")
        assert answer.header("content-type") == ["application/x-x509-ca-cert"]
        assert answer.body == ca.pem
        foreign = await (await plain.connect()).ask(b"GET /ca.crt HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert foreign.status == 421
        trusting = ssl.create_default_context(cadata=answer.body.decode())
        for name in ("coffee.example", "127.0.0.1"):
            stream = await trio.open_tcp_stream(*here.address)
            tls = trio.SSLStream(stream, trusting, server_hostname=name)
            await tls.do_handshake()
            await tls.send_all(b"GET /ca HTTP/1.1\r\nHost: coffee.example\r\nConnection: close\r\n\r\n")
            page = b""
            with suppress(trio.BrokenResourceError):
                while data := await tls.receive_some(65536):
                    page += data
            await trio.aclose_forcefully(tls)
            assert ca.fingerprint.encode() in page.replace(b"<wbr>", b"")
        plain.abort()


async def test_invalid_certificates_are_refused(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    files.key.write_bytes(b"no key")
    with pytest.raises(SettingsError, match=r"server\.key"):
        async with open_server(settings(tmp_path, tls_cert=files.cert, tls_key=files.key)):
            pass


@pytest.mark.parametrize(
    ("public_url", "host", "location"),
    [
        (None, "localhost", "https://localhost:{port}/machines?tab=system"),
        ("https://relay.example", "relay.example", "https://relay.example/machines?tab=system"),
        ("https://relay.example:8443", "relay.example", "https://relay.example:8443/machines?tab=system"),
        ("https://relay.example", "evil.example", None),
        (None, "evil.example", None),
    ],
)
async def test_plain_http_is_redirected_to_tls(
    tmp_path: Path, public_url: str | None, host: str, location: str | None
) -> None:
    port = free_port()
    chosen = {"tls_self_signed": True, "redirect_port": port, "public_url": public_url}
    async with serve_here(tmp_path, settings=chosen) as here:
        elsewhere = Reach(("127.0.0.1", port))
        request = f"GET /machines?tab=system HTTP/1.1\r\nHost: {host}\r\n\r\n"
        answer = await (await elsewhere.connect()).ask(request.encode())
        if location is None:
            assert (answer.status, answer.header("location")) == (421, [])
        else:
            assert answer.status == 308
            assert answer.header("location") == [location.format(port=here.address[1])]
        elsewhere.abort()


async def test_a_port_for_redirects_that_is_in_use_frees_the_other(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = settings(tmp_path, port=port, tls_self_signed=True, redirect_port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            async with open_server(chosen):
                pass
    async with open_server(settings(tmp_path, port=port)):
        pass


# Trusted proxies


@asynccontextmanager
async def serve(folder: Path, **chosen: Any) -> AsyncIterator[HereServer]:
    async with serve_here(folder, settings=chosen) as here:
        yield here


async def address_of(here: HereServer, *, before: bytes = b"", headers: str = "") -> str:
    """Sign in. Return the address that the session records."""
    token = secrets.token_urlsafe(32)
    await here.server.store.write(
        add_invite,
        email="ada@example.org",
        token_hash=hash_secret(token),
        is_admin=False,
        expires_at_ms=now_ms() + 60_000,
        now_ms=now_ms(),
    )
    body = json.dumps({"token": token})
    head = f"POST /api/auth/invite HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(body)}\r\n"
    connection = await here.connect()
    await connection.send(before)
    answer = await connection.ask(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
    access_token = json.loads(answer.body)["accessToken"]
    head = f"GET /api/auth/sessions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {access_token}\r\n\r\n"
    listed = json.loads((await connection.ask(head.encode())).body)["sessions"]
    return next(str(session["address"]) for session in listed if session["current"])


async def test_forwarded_headers_are_ignored_without_trusted_proxies(tmp_path: Path) -> None:
    async with serve(tmp_path) as here:
        assert await address_of(here, headers="X-Forwarded-For: 198.51.100.7\r\n") == "127.0.0.1"
        request = is_proxied("198.51.100.7") + b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n"
        answer = await (await here.connect()).ask(request)
        assert answer.status == 400


async def test_forwarded_headers_of_a_trusted_proxy_are_used(tmp_path: Path) -> None:
    async with serve(tmp_path, trusted_proxies=parse_networks("127.0.0.0/8")) as here:
        assert await address_of(here, headers="X-Forwarded-For: 6.6.6.6, 198.51.100.7\r\n") == "198.51.100.7"
        assert await address_of(here) == "127.0.0.1"


async def test_a_trusted_proxy_sends_its_header_first(tmp_path: Path) -> None:
    chosen = {"trusted_proxies": parse_networks("127.0.0.0/8"), "proxy_protocol": True}
    async with serve(tmp_path, **chosen) as here:
        assert await address_of(here, before=is_proxied("198.51.100.7")) == "198.51.100.7"
        # The client sent these headers, not the proxy.
        forged = "X-Forwarded-For: 6.6.6.6\r\n"
        assert await address_of(here, before=is_proxied("198.51.100.7"), headers=forged) == "198.51.100.7"
        without = await (await here.connect()).ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert without.status == 400
        socket_ = await here.connect()
        await socket_.send(is_proxied("198.51.100.7"))
        assert (await socket_.ask(upgrade_head(f"/ws/device?id={MACHINE}&key={KEY}"))).status == 101


async def test_connections_from_other_addresses_need_no_proxy_header(tmp_path: Path) -> None:
    chosen = {"trusted_proxies": parse_networks("10.0.0.0/8"), "proxy_protocol": True}
    async with serve(tmp_path, **chosen) as here:
        assert await address_of(here) == "127.0.0.1"


async def test_a_proxy_header_comes_before_tls_and_before_redirected_requests(tmp_path: Path) -> None:
    chosen = {
        "trusted_proxies": parse_networks("127.0.0.0/8"),
        "proxy_protocol": True,
        "tls_self_signed": True,
        "redirect_port": (port := free_port()),
    }
    async with serve(tmp_path, **chosen) as here:
        plain = await here.connect()
        await plain.send(is_proxied("198.51.100.7"))
        stream = trio.SSLStream(plain.stream, client_context(), server_hostname="localhost")
        client = WireClient(cast(trio.SocketStream, stream))
        assert (await client.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
        elsewhere = Reach(("127.0.0.1", port))
        request = is_proxied("198.51.100.7") + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert (await (await elsewhere.connect()).ask(request)).status == 308
        elsewhere.abort()


async def test_pages_of_allowed_origins_may_connect(tmp_path: Path) -> None:
    async with serve(tmp_path, allowed_origins=("https://app.example",)) as here:
        target = f"/ws/client?token={here.token()}&device={MACHINE}"
        for origin, status in (("https://app.example", 101), ("https://other.example", 403)):
            connection = await here.connect()
            assert (await connection.ask(upgrade_head(target, Origin=origin))).status == status


async def test_tokens_of_all_secrets_and_keys_are_valid(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    file = tmp_path / "key.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    older = "older-secret-" + "o" * 32
    async with serve(tmp_path, jwt_secret=f"{SECRET},{older}", jwt_key_files=(file,)) as here:
        for ring in (KeyRing([SECRET]), KeyRing([older]), KeyRing([], [load_private_key(file.read_bytes())])):
            token = ring.issue(user_id="ada", email="ada@example.org", devices="*")
            connection = await here.client(MACHINE, token=token)
            assert connection.connected["deviceId"] == MACHINE
        listed = await (await here.connect()).ask(b"GET /api/auth/jwks.json HTTP/1.1\r\nHost: a\r\n\r\n")
        assert len(json.loads(listed.body)["keys"]) == 1


async def test_activity_is_written_to_the_registry(tmp_path: Path) -> None:
    async with serve(tmp_path) as here:
        device, app = await here.device(MACHINE), await here.client(MACHINE)
        await device.send(text({"type": "device_info", "firmwareVersion": "0.8.62"}))
        await app.read_until("device_info")
        await app.send(text({"type": "command", "cmd": "tare"}))
        await device.read_until("command")
    registry = settings(tmp_path).resolved_database_url()
    with Database.open(registry) as database, database.reading() as db:
        kinds = {entry.kind: entry.user_id for entry in activity_of(db, MACHINE)}
        [found] = find_devices(db, [MACHINE])
    assert kinds["command"] == kinds["client_came"] == kinds["client_went"] == "ada"
    assert kinds["online"] is kinds["offline"] is None
    assert found.last_seen_ms is not None
    assert found.firmware_version == "0.8.62"


async def test_log_lines_about_failed_requests_are_limited_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object, **_more: object) -> None:
        raise RegistryError("locked")

    caplog.set_level("INFO")
    async with serve(tmp_path) as here:
        monkeypatch.setattr(here.server.store, "write_anonymous", fail)
        connection = await here.connect()
        body = json.dumps({"refreshToken": "x" * 43}).encode()
        head = (
            "POST /api/auth/refresh HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        for _ in range(int(LINES_AT_ONCE_OF_EACH) + 10):
            assert (await connection.ask(head.encode() + body)).status == 503
        connection.abort()
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("the registry failed a request") for line in said) <= LINES_AT_ONCE_OF_EACH + 3
    assert sum("more log lines about failed requests" in line for line in said) == 1


# The process


async def test_sighup_reloads_the_certificate_and_the_process_continues(tmp_path: Path) -> None:
    with trio.fail_after(20):
        files = write_certificate(tmp_path)
        async with serve_process(
            tmp_path, BREWOS_RELAY_TLS_CERT=files.cert, BREWOS_RELAY_TLS_KEY=files.key
        ) as server:
            connection = await over_tls(server)
            before = await fingerprint(server)
            write_certificate(tmp_path)
            server.send_signal(signal.SIGHUP)
            with trio.fail_after(3):  # files are looked at every 5 s anyway
                while await fingerprint(server) == before:
                    pass
            health = b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n"
            assert (await connection.ask(health)).status == 200
            files.key.write_bytes(b"no key")
            server.send_signal(signal.SIGHUP)
            assert (await (await over_tls(server)).ask(health)).status == 200
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=3) == 0


@pytest.mark.parametrize(("host", "warns"), [("", True), ("127.0.0.1", False)])
async def test_process_warns_of_plain_http_on_all_interfaces(tmp_path: Path, host: str, warns: bool) -> None:
    with trio.fail_after(20):
        process = await trio.lowlevel.open_process(
            [*SERVE, "--host", host],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"ready" in await process.stdout.receive_some()
        process.send_signal(signal.SIGTERM)
        log = b""
        while data := await process.stderr.receive_some():
            log += data
        assert await process.wait() == 0
        await process.stdout.aclose()
        await process.stderr.aclose()
    assert (b"listens on all interfaces without TLS" in log) == warns


async def test_a_process_without_tls_continues_after_sighup(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with serve_process(tmp_path) as server:
            server.send_signal(signal.SIGHUP)
            connection = await server.connect()
            assert (await connection.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            assert server.process.poll() is None


async def test_the_fingerprint_of_a_self_signed_certificate_is_announced(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with serve_process(tmp_path, BREWOS_RELAY_TLS_SELF_SIGNED="true") as server:
            assert (await server.read_line()).strip().endswith(await fingerprint(server))
            ca = LocalCa.load(tmp_path / "data")
            assert ca is not None
            assert f"local CA's SHA-256 fingerprint: {ca.fingerprint}; install" in await server.read_line()


async def test_a_registry_without_accounts_is_announced_with_the_command(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve_process(tmp_path) as server:
            line = await server.read_line()
            assert "there is no account yet" in line
            command = line.partition("brewos-relay user invite ")[2].split()
            assert command == ["EMAIL", "--data-dir", str(tmp_path / "data")]
            done = await run_command(tmp_path, "user", "invite", "ada@example.org", *command[1:])
            assert b"signs ada@example.org in as an administrator" in done.stderr


async def test_an_open_invite_of_an_administrator_is_announced_with_the_command(tmp_path: Path) -> None:
    with trio.fail_after(60):
        await run_command(tmp_path, "user", "invite", "ada@example.org", "--ttl", "1h")
        await run_command(tmp_path, "user", "invite", "ada@example.org", "--ttl", "2h")
        async with serve_process(tmp_path) as server:
            line = await server.read_line()
            assert "an invite for ada@example.org is open until 20" in line
            assert "there is no account yet" not in line
            command = line.partition("brewos-relay user invite ")[2].split()
            assert command == ["ada@example.org", "--data-dir", str(tmp_path / "data")]
            done = await run_command(tmp_path, "user", "invite", *command)
            assert b"signs ada@example.org in as an administrator" in done.stderr


async def test_the_ready_line_and_the_exit(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with serve_process(tmp_path) as server:
            connection = await server.connect()
            assert (await connection.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=3) == 0


BAD_SETTINGS = {
    "no secret": ({"JWT_SECRET": ""}, "brewos-relay secret"),
    "short secret": ({"JWT_SECRET": "short"}, "brewos-relay secret"),
    "limit": ({"BREWOS_RELAY_STALL_S": "soon"}, "BREWOS_RELAY_STALL_S"),
    "port": ({"PORT": "http"}, "PORT"),
    "database": ({"BREWOS_RELAY_DATABASE_URL": "nonsense"}, "database"),
    "data folder": ({"DATA_DIR": "/dev/null/data"}, "/dev/null"),
    "web app": ({"WEB_DIST_PATH": "/nowhere/dist"}, "/nowhere/dist"),
    "certificate": (
        {"BREWOS_RELAY_TLS_CERT": "/nowhere/a.crt", "BREWOS_RELAY_TLS_KEY": "/nowhere/a.key"},
        "/nowhere/a.",
    ),
    "key file": ({"BREWOS_RELAY_JWT_KEY_FILES": "/nowhere/key.pem"}, "/nowhere/key.pem"),
    "proxy": ({"BREWOS_RELAY_PROXY_PROTOCOL": "true"}, "BREWOS_RELAY_TRUSTED_PROXIES"),
    "host": ({"BREWOS_RELAY_HOST": "300.300.300.300"}, "--host"),
}


@pytest.mark.parametrize(("environ", "named"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
async def test_contradictory_settings_are_exit_code_3(
    tmp_path: Path, environ: dict[str, str], named: str
) -> None:
    done = await run_command(tmp_path, "serve", **{"PORT": "0", **environ})
    assert done.returncode == 3
    assert done.stdout == b""
    assert named in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


async def test_a_port_in_use_is_exit_code_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = await run_command(tmp_path, "serve", "--host", "127.0.0.1", "--port", port)
    assert done.returncode == 3
    assert b"in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_no_secret_gets_into_the_log(tmp_path: Path) -> None:
    with trio.fail_after(20):
        added = await run_command(tmp_path, "device", "add", MACHINE, "--key", KEY)
        assert added.returncode == 0
        async with serve_process(
            tmp_path,
            BREWOS_RELAY_LOG_LEVEL="debug",
            BREWOS_RELAY_DEVICE_MIN_AGE_S=0.1,
            BREWOS_RELAY_DRAIN_S=0.1,
        ) as server:
            token = server.token()
            await server.client(MACHINE)
            await server.device(MACHINE)
            for path in (f"/?token={token}", f"/api/x?token={token}", f"/ws/other?token={token}&key={KEY}"):
                request = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
                await (await server.connect()).ask(request.encode())
            bad = f"GET /ws/device?id={MACHINE}&key={KEY}&token={token} HTTP/1.1\r\nHost: \0\r\n\r\n"
            assert (await (await server.connect()).ask(bad.encode())).status == 400
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=4) == 0
            log = server.log_file.read_text()
    assert log
    assert not [secret for secret in (KEY, token, SECRET, "key=", "token=") if secret in log]


def test_limits_have_defaults_that_a_machine_survives() -> None:
    assert ServerLimits().device_min_age_s >= 8
    assert ServerLimits().admission_s < 5
    assert ServerLimits().client_message_bytes <= 4096
