"""A message from a device to an app and back, through the address that everybody uses."""

import secrets
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from brewos_relay.auth.keys import generate_key, hash_key
from brewos_relay.client.connection import ConnectionEnded, RelayRefused, WebSocket
from brewos_relay.client.dialing import dial_app, dial_device
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.core.clock import now_ms
from brewos_relay.doctor.finding import Finding
from brewos_relay.errors import RegistryError, RelayError, SettingsError
from brewos_relay.messages import encode
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, remove_device
from brewos_relay.registry.records import NewDevice
from brewos_relay.server.key_ring import read_key_ring
from brewos_relay.settings import Settings

NAME: Final = "Canary of the doctor"
"""How the device is called, should anybody see it before it is removed."""
_WITHIN_S: Final = 10.0
_TOKEN_S: Final = 60
_SLOW_S: Final = 1.0


def send_canary(settings: Settings, url: str, context: ssl.SSLContext | None) -> list[Finding]:
    """Register a device for a moment, and let it and an app talk through the server at `url`.

    Whatever happens, the device is removed, and with it everything that its token is good for.
    """
    name = "canary"
    try:
        token = ""
        with _temporary_device(settings) as (device_id, key):
            # It names this device only, ends by itself, and leads nowhere once the device is gone.
            token = read_key_ring(settings).issue(
                user_id="doctor", email="doctor@localhost", devices=[device_id], ttl_s=_TOKEN_S
            )
            there_s, back_s = trio.run(_talk, url, device_id, key, token, context)
    except RelayRefused as problem:
        advice = {
            401: "the server has another registry than these settings name",
            403: "the server has another registry than these settings name",
            404: "whatever answers there is no relay, or a proxy does not pass /ws/ on",
            426: "a proxy in between does not pass the upgrade on",
        }.get(problem.status, "look at the server's log")
        return [Finding(name, "failed", f"{url}: {problem}", advice)]
    except RelayUnreachable as problem:
        return [Finding(name, "failed", str(problem), "start the server, or name it with --url")]
    except ConnectionEnded as problem:
        return [Finding(name, "failed", f"{url}: {problem}", "see that JWT_SECRET is that of the server")]
    except (trio.TooSlowError, RelayError, RegistryError, SettingsError, OSError) as problem:
        said = str(problem) or f"no message came through within {_WITHIN_S:g} s"
        return [Finding(name, "failed", f"{url}: {said}", "look at the server's log")]
    took = f"device to app {there_s * 1000:.1f} ms, app to device {back_s * 1000:.1f} ms, through {url}"
    if max(there_s, back_s) > _SLOW_S:
        return [Finding(name, "warning", took, "look at the network, and at the server's load")]
    return [Finding(name, "ok", took)]


@contextmanager
def _temporary_device(settings: Settings) -> Iterator[tuple[str, str]]:
    """Register a device with a key for as long as the body runs."""
    device_id, key = f"BRW-{secrets.token_hex(4).upper()}", generate_key()
    with Database.open(settings.resolved_database_url()) as database:
        with database.writing() as db:
            add_devices(db, [NewDevice(id=device_id, key_hash=hash_key(key), name=NAME)], now_ms=now_ms())
        try:
            yield device_id, key
        finally:
            with database.writing() as db:
                remove_device(db, device_id, now_ms=now_ms())


async def _talk(
    url: str, device_id: str, key: str, token: str, context: ssl.SSLContext | None
) -> tuple[float, float]:
    """Give how long a message took from the device to the app, and from the app to the device, in s."""
    with trio.fail_after(_WITHIN_S):
        async with dial_device(url, device_id=device_id, key=key, ssl_context=context) as device:
            await device.receive()
            await device.send(encode({"type": "canary", "number": 0}))
            async with dial_app(url, token=token, device_id=device_id, ssl_context=context) as app:
                await app.receive()
                sent_at_s = time.perf_counter()
                await device.send(encode({"type": "canary", "number": 1}))
                await _hear(app, b'"number":1')
                there_s = time.perf_counter() - sent_at_s
                sent_at_s = time.perf_counter()
                await app.send(encode({"type": "command", "cmd": "canary", "number": 2}))
                await _hear(device, b'"number":2')
                return there_s, time.perf_counter() - sent_at_s


async def _hear(peer: WebSocket, mark: bytes) -> None:
    while mark not in (await peer.receive()).payload:
        pass
