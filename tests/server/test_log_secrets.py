"""No secret is logged, in any situation."""

from pathlib import Path

import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from support.process import KEY, SECRET, WRONG_KEY, machine_id, serve_process
from support.waiting import until
from support.wire_client import close, text, upgrade_head

MACHINE = machine_id(1)
PASSWORD = "correct-Horse-battery-5taple"
METRICS_TOKEN = "metrics-t0ken-for-nobody-else"


async def test_a_server_s_log_has_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with Database.open(f"sqlite:///{tmp_path}/data/brewos-relay.db") as database, database.writing() as db:
        add_devices(db, [NewDevice(id=MACHINE, key_hash=hash_secret(KEY))], now_ms=1)
    with trio.fail_after(40):
        async with serve_process(
            tmp_path,
            BREWOS_RELAY_LOG_LEVEL="debug",
            BREWOS_RELAY_METRICS_TOKEN=METRICS_TOKEN,
            BREWOS_RELAY_DRAIN_S=0.1,
            BREWOS_RELAY_DEVICE_MIN_AGE_S=0.1,
        ) as server:
            good = server.token()
            forged = good[:-6] + "AAAAAA"
            device = await server.device(MACHINE)
            app = await server.client(MACHINE, token=good)
            await app.send(text({"type": "command", "cmd": "set_wifi", "password": PASSWORD}))
            await app.send(text({"type": "refresh_auth", "token": forged}))
            await device.send(text({"type": "status", "note": PASSWORD, "key": KEY}))
            targets = [
                f"/ws/device?id={MACHINE}&key={WRONG_KEY}",
                f"/ws/device?id={KEY}&key={KEY}",
                f"/ws/device?key={KEY}",
                f"/ws/client?token={forged}&device={MACHINE}",
                f"/ws/client?token={good}&device={KEY}",
                f"/ws/other?token={good}",
                f"/elsewhere?token={good}&key={KEY}",
            ]
            for target in targets:
                connection = await server.connect()
                await connection.ask(upgrade_head(target))
            bodies = [
                ("POST", "/api/auth/login", {"email": "a@example.org", "password": PASSWORD}),
                ("POST", "/api/auth/google", {"credential": good}),
                ("POST", "/api/auth/refresh", {"refreshToken": WRONG_KEY}),
                ("POST", "/api/devices/register-claim", {"deviceId": MACHINE, "token": KEY, "key": KEY}),
                ("GET", f"/api/devices?token={good}", None),
                ("GET", "/metrics", None),
                ("GET", f"/no/such/page?key={KEY}", None),
            ]
            for method, path, body in bodies:
                connection = await server.connect()
                data = b"" if body is None else text_of(body)
                head = (
                    f"{method} {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {forged}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
                    "Connection: close\r\n\r\n"
                )
                await connection.ask(head.encode() + data)
            broken = await server.connect()
            await broken.send(f"GET /?token={good}\x00 HTTP/1.1\r\nkey: {KEY}".encode())
            broken.abort()
            await app.send(close(4999, KEY.encode()))
            await device.send(close(1000, f"token={forged[:60]}".encode()))
            said = (f"device {MACHINE} went", "refused 127.0.0.1", "from a client: command")
            await until(lambda: all(line in server.log_file.read_text() for line in said))
            server.process.terminate()
            await server.wait(within_s=10)
            log = server.log_file.read_text()
    for secret in (KEY, WRONG_KEY, SECRET, PASSWORD, METRICS_TOKEN, good, forged):
        assert secret not in log
        assert secret[4:30] not in log
    assert "token=" not in log.replace("token=[hidden]", "")
    assert "key=" not in log


def text_of(body: object) -> bytes:
    import msgspec

    return msgspec.json.encode(body)
