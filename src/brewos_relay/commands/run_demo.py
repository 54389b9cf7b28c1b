"""The work of `brewos-relay demo`: a relay, a simulated device and an app, with temporary data."""

import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

import trio

from brewos_relay.auth.secrets import generate_secret, generate_secret_token, hash_secret
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.commands.message_lines import format_line
from brewos_relay.commands.output import discard_output
from brewos_relay.commands.run_client import tail
from brewos_relay.core.pauses import RunningClock
from brewos_relay.errors import SettingsError
from brewos_relay.messages import Message
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.records import NewDevice
from brewos_relay.server.assembly import open_server
from brewos_relay.settings import Settings
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.simulator.connection_policy import RICH
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.simulated_device import SimulatedDevice
from brewos_relay.simulator.usage_patterns import Barista
from brewos_relay.telemetry.line_writer import LineWriter
from brewos_relay.vocabulary import generate_key, now_ms

HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 3001
DEVICE_ID: Final = "BRW-00C0FFEE"
EMAIL: Final = "demo@example.org"
INVITE_S: Final = 86_400.0
RECONNECT_S: Final = 3.0
SPEED: Final = 6.0  # the machine is warm after half a minute
SHOT_EVERY_S: Final = 300.0  # of the machine's time: every 50 s of real time
_PORTS_TRIED: Final = 100

#: Short pauses, as people watch the demo.
POLICY: Final = replace(RICH, reconnect_s=RECONNECT_S, refused_s=RECONNECT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The settings and credentials of a demo.

    `invite` is the secret of a link that signs the demo's user in once; the user owns the device.
    """

    settings: Settings
    device_id: str
    device_key: str = field(repr=False)
    invite: str = field(repr=False)
    token: str = field(repr=False)


def run_demo(port: int | None) -> None:
    """Run the demo until Ctrl-C. `port` None selects 3001 or the next free one, 0 any free one.

    Raises SettingsError if the port is taken.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="brewos-relay-demo-") as folder:
            demo = prepare(Path(folder), port=find_port() if port is None else check_port(port))
            trio.run(_run_until_interrupted, demo, clock=RunningClock())
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError:
        discard_output()


def prepare(folder: Path, *, port: int) -> Demo:
    """Create a registry in `folder` with one device and its owner, and the credentials to use it."""
    secret = generate_secret()
    settings = Settings(
        host=HOST,
        port=port,
        jwt_secret=secret,
        data_dir=folder,
        # The simulated device keeps its key after a short connection, so draining need not wait for it.
        limits=ServerLimits(device_min_age_s=0.0, drain_s=0.5, close_s=0.3),
    )
    key = generate_key()
    device = NewDevice(id=DEVICE_ID, key_hash=hash_secret(key), name="Simulated machine")
    invite = generate_secret_token()
    at_ms = now_ms()
    with Database.open(settings.resolved_database_url()) as database, database.writing() as db:
        add_devices(db, [device], now_ms=at_ms)
        owner = add_user(db, email=EMAIL, name="Demo", now_ms=at_ms)
        give(db, DEVICE_ID, owner.id, role="owner", until_ms=None, now_ms=at_ms)
        add_invite(
            db,
            email=EMAIL,
            token_hash=hash_secret(invite),
            is_admin=True,
            expires_at_ms=at_ms + round(INVITE_S * 1000),
            now_ms=at_ms,
        )
    token = KeyRing([secret]).issue(user_id=owner.id, email=EMAIL, devices=[DEVICE_ID])
    return Demo(settings=settings, device_id=DEVICE_ID, device_key=key, invite=invite, token=token)


async def demonstrate(
    demo: Demo, *, say: Callable[[str], None], until: Callable[[], Awaitable[object]]
) -> None:
    """Run the server, a device that has just been switched on, and an app that prints its messages.

    **Owns:** the server, and the tasks of the device and the app.
    **Ends when:** `until` returns; device and app close their connections first, then the server drains.
    """
    async with open_server(demo.settings, demo=True) as server:
        for line in introduction(demo, server.url):
            say(line)
        machine = Machine(device_id=demo.device_id, now_ms=now_ms, rich=True)
        machine.switch_on()
        simulator = SimulatedDevice(
            machine,
            url=server.url,
            key=demo.device_key,
            policy=POLICY,
            usage=Barista(SHOT_EVERY_S),
            speed=SPEED,
            announce=lambda text: say(f"device {text}"),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(simulator.run)
            nursery.start_soon(_watch, demo, server.url, say)
            await until()
            nursery.cancel_scope.cancel()


def introduction(demo: Demo, url: str) -> list[str]:
    """Return the lines that describe the demo, with commands to try."""
    where = f"--url {url} --token {demo.token}"
    page = f"{url}/login?next=/machine/{demo.device_id}"
    return [
        f"open     {page}#demo&invite={demo.invite}   (signs you in, once)",
        f"URL      {url}",
        f"device   {demo.device_id}   (simulated, at {SPEED:g} times real time)",
        f"token    {demo.token}",
        "",
        "Attach another app, in another terminal:",
        "",
        f"  brewos-relay tail {demo.device_id} {where}",
        "",
        "Send commands to the device, and watch the messages in both apps:",
        "",
        f"  brewos-relay send {demo.device_id} set_temp boiler=brew temp=96 {where}",
        f"  brewos-relay send {demo.device_id} set_mode mode=off {where}",
        f"  brewos-relay send {demo.device_id} set_mode mode=on {where}",
        "",
        "Ctrl-C ends the demo. Messages that an attached app receives:",
        "",
    ]


def find_port() -> int:
    """Return the first free port from 3001 on."""
    for port in range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED):
        if _is_free(port):
            return port
    raise SettingsError(
        f"ports {FIRST_PORT} to {FIRST_PORT + _PORTS_TRIED - 1} are all taken; choose another one with --port"
    )


def check_port(port: int) -> int:
    """Return the port if it is free. Raises SettingsError if it is not."""
    if not _is_free(port):
        raise SettingsError(f"port {port} cannot be used on {HOST}; choose another one with --port")
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if sys.platform != "win32":
            # As the server does; otherwise the port of a demo that has just ended would not be free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


async def _watch(demo: Demo, url: str, say: Callable[[str], None]) -> None:
    """Attach as an app, and print each message."""

    def write(message: Message) -> None:
        say(format_line(message, datetime.now().astimezone()))

    await tail(url=url, token=demo.token, device_id=demo.device_id, write=write)


async def _run_until_interrupted(demo: Demo) -> None:
    output = LineWriter(sys.stdout)

    def say(line: str) -> None:
        if output.is_broken:
            raise BrokenPipeError
        output.put(line)

    try:
        await _demonstrate_until_interrupted(demo, say)
    finally:
        output.flush()


async def _demonstrate_until_interrupted(demo: Demo, say: Callable[[str], None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        await demonstrate(demo, say=say, until=signals.__anext__)
