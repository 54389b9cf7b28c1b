"""The canary: a message from a temporary device to an app and back, through the public URL of the server."""

import signal
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final

import trio
from sqlalchemy import Connection, exists, select

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused, WebSocket, dial_app, dial_device
from brewos_relay.doctor import Finding
from brewos_relay.errors import CloseCode, RegistryError, RelayError, SettingsError
from brewos_relay.messages import encode
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, find_devices, remove_device
from brewos_relay.registry.records import NewDevice
from brewos_relay.registry.schema import device_users, devices
from brewos_relay.server.key_ring import read_key_ring
from brewos_relay.settings import Settings
from brewos_relay.vocabulary import generate_device_id, generate_key, now_ms

NAME: Final = "Canary of the doctor"
"""The name of the temporary device, for users who see it before it is removed."""
_WITHIN_S: Final = 10.0
_TOKEN_S: Final = 60
_SLOW_S: Final = 1.0
_LEFT_MS: Final = 60_000
"""A canary that is older than this was left behind by a killed process."""
_ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CanaryNotRemoved(RegistryError):
    """The temporary device could not be removed."""

    def __init__(self, device_id: str, problem: RegistryError) -> None:
        super().__init__(f"its device {device_id} may still be registered: {problem}")
        self.device_id = device_id


def send_canary(settings: Settings, url: str, context: ssl.SSLContext | None) -> list[Finding]:
    """Register a temporary device, and exchange messages between it and an app through the server at `url`.

    The device is always removed, and with it the access of its token; signals that end the process are
    deferred until then. Call this in the main thread.
    """
    name = "canary"
    try:
        token = ""
        signals = _DeferredSignals()
        with signals.caught(), _temporary_device(settings) as (device_id, key):
            # The token names only this device, expires soon, and gives no access once the device is removed.
            token = read_key_ring(settings).issue(
                user_id="doctor", email="doctor@localhost", devices=[device_id], ttl_s=_TOKEN_S
            )
            there_s, back_s = trio.run(signals.run, partial(_talk, url, device_id, key, token, context))
    except RelayRefused as problem:
        advice = {
            401: "the server uses another registry than these settings",
            403: "the server uses another registry than these settings",
            404: "the server there is not a relay, or a proxy does not forward /ws/",
            426: "a proxy does not forward the upgrade",
        }.get(problem.status, "read the server's log")
        return [Finding(name, "failed", f"{url}: {problem}", advice)]
    except RelayUnreachable as problem:
        return [Finding(name, "failed", str(problem), "start the server, or name it with --url")]
    except ConnectionEnded as problem:
        advice = "read the server's log"
        if problem.close_code == CloseCode.TOKEN_REJECTED:
            advice = "set JWT_SECRET to that of the server"
        return [Finding(name, "failed", f"{url}: {problem}", advice)]
    except CanaryNotRemoved as problem:
        advice = f"remove it: brewos-relay device remove {problem.device_id}"
        return [Finding(name, "failed", str(problem), advice)]
    except (trio.TooSlowError, RelayError, RegistryError, SettingsError, OSError) as problem:
        detail = str(problem) or f"no message arrived within {_WITHIN_S:g} s"
        return [Finding(name, "failed", f"{url}: {detail}", "read the server's log")]
    took = f"device to app {there_s * 1000:.1f} ms, app to device {back_s * 1000:.1f} ms, through {url}"
    if max(there_s, back_s) > _SLOW_S:
        return [Finding(name, "warning", took, "check the network and the server's load")]
    return [Finding(name, "ok", took)]


@contextmanager
def _temporary_device(settings: Settings) -> Iterator[tuple[str, str]]:
    """Register a device while the body runs; the value is its id and its key."""
    device_id, key = generate_device_id(), generate_key()
    with Database.open(settings.resolved_database_url()) as database:
        try:
            with database.writing() as db:
                _remove_what_was_left(db)
                add_devices(
                    db, [NewDevice(id=device_id, key_hash=hash_secret(key), name=NAME)], now_ms=now_ms()
                )
            yield device_id, key
        finally:
            try:
                with database.writing() as db:
                    # If the id was taken, nothing was added, and the other device stays.
                    if any(each.key_hash == hash_secret(key) for each in find_devices(db, [device_id])):
                        remove_device(db, device_id, now_ms=now_ms())
            except RegistryError as problem:
                raise CanaryNotRemoved(device_id, problem) from problem


def _remove_what_was_left(db: Connection) -> None:
    """Remove the devices of canaries whose process was killed."""
    left = (
        select(devices.c.id)
        .where(devices.c.name == NAME)
        .where(devices.c.created_at_ms <= now_ms() - _LEFT_MS)
        .where(~exists().where(device_users.c.device_id == devices.c.id))
    )
    for device_id in db.scalars(left).all():
        remove_device(db, device_id, now_ms=now_ms())


class _DeferredSignals:
    """Defers signals that end the process until the device is removed, and cancels the exchange at once."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._hurry: Callable[[], None] | None = None

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch SIGINT, SIGTERM and SIGHUP while the body runs, in the main thread.

        If one arrived, raises KeyboardInterrupt or SystemExit after the body, also if the body has failed.
        """
        earlier = {number: signal.signal(number, self._note) for number in _ENDINGS}
        try:
            yield
        finally:
            for number, action in earlier.items():
                signal.signal(number, action)
            if self._received == signal.SIGINT:
                raise KeyboardInterrupt
            if self._received is not None:
                raise SystemExit(128 + self._received)

    async def run(self, talk: Callable[[], Awaitable[tuple[float, float]]]) -> tuple[float, float]:
        """Return the result of `talk`. Cancel `talk` if a signal arrives, and return zeros.

        The caller does not get to use the zeros: `caught` raises when its body ends.
        """
        took = 0.0, 0.0
        with trio.CancelScope() as scope:
            self._hurry = partial(trio.lowlevel.current_trio_token().run_sync_soon, scope.cancel)
            try:
                if self._received is None:
                    took = await talk()
            finally:
                self._hurry = None
        return took

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
        if self._hurry is not None:
            self._hurry()


async def _talk(
    url: str, device_id: str, key: str, token: str, context: ssl.SSLContext | None
) -> tuple[float, float]:
    """Return how long a message took from device to app, and from app to device, in s."""
    with trio.fail_after(_WITHIN_S):
        async with dial_device(url, device_id=device_id, key=key, ssl_context=context) as device:
            await device.receive()
            await device.send(encode({"type": "canary", "number": 0}))
            async with dial_app(url, token=token, device_id=device_id, ssl_context=context) as app:
                await app.receive()
                sent_at_s = time.perf_counter()
                await device.send(encode({"type": "canary", "number": 1}))
                await _receive_until(app, b'"number":1')
                there_s = time.perf_counter() - sent_at_s
                sent_at_s = time.perf_counter()
                await app.send(encode({"type": "command", "cmd": "canary", "number": 2}))
                await _receive_until(device, b'"number":2')
                return there_s, time.perf_counter() - sent_at_s


async def _receive_until(peer: WebSocket, mark: bytes) -> None:
    while mark not in (await peer.receive()).payload:
        pass
