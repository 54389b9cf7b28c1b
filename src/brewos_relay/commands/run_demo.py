"""`brewos-relay demo`: a whole relay at work, with nothing to configure and nothing left behind."""

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
from brewos_relay.commands.output import drop_output
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
from brewos_relay.settings.limits import ServerLimits
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
SPEED: Final = 6.0  # warm in half a minute rather than in three and a half
SHOT_EVERY_S: Final = 300.0  # of the machine's time, so every 50 s of ours
_PORTS_TRIED: Final = 100

#: Whoever watches a demo does not wait long for a machine that comes back.
POLICY: Final = replace(RICH, reconnect_s=RECONNECT_S, refused_s=RECONNECT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What a demo runs with: the server's settings, and the credentials of one machine and one user.

    `invite` is the secret of a link that signs its user in once; the user owns the machine.
    """

    settings: Settings
    device_id: str
    device_key: str = field(repr=False)
    invite: str = field(repr=False)
    token: str = field(repr=False)


def run_demo(port: int | None) -> None:
    """Run the demo until Ctrl-C; `port` None takes 3001 or the next free one, 0 any free one.

    Raises SettingsError if the port is taken.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="brewos-relay-demo-") as folder:
            demo = prepare(Path(folder), port=find_port() if port is None else check_port(port))
            trio.run(_run_until_interrupted, demo, clock=RunningClock())
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError:
        drop_output()


def prepare(folder: Path, *, port: int) -> Demo:
    """Make a registry in `folder` with one machine and its owner, and everything that is needed to use it."""
    secret = generate_secret()
    settings = Settings(
        host=HOST,
        port=port,
        jwt_secret=secret,
        data_dir=folder,
        # The simulated machine does not throw its key away when its first seconds are cut short, so that
        # leaving need not wait for anything.
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
    """Run the server, a machine that has just been switched on, and an app that says what arrives.

    **Owns:** the server, and the tasks of the machine and of the app.
    **Ends when:** `until` returns; machine and app say goodbye first, then the server drains.
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
            announce=lambda text: say(f"machine {text}"),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(simulator.run)
            nursery.start_soon(_watch, demo, server.url, say)
            await until()
            nursery.cancel_scope.cancel()


def introduction(demo: Demo, url: str) -> list[str]:
    """Say what there is, and how to join in."""
    where = f"--url {url} --token {demo.token}"
    page = f"{url}/login?next=/machine/{demo.device_id}"
    return [
        f"open     {page}#demo&invite={demo.invite}   (once: it signs you in)",
        f"URL      {url}",
        f"device   {demo.device_id}   (simulated; its time passes {SPEED:g} times as fast as yours)",
        f"token    {demo.token}",
        "",
        "Attach another app, in another terminal:",
        "",
        f"  brewos-relay tail {demo.device_id} {where}",
        "",
        "Make the machine obey, and watch what both apps see:",
        "",
        f"  brewos-relay send {demo.device_id} set_temp boiler=brew temp=96 {where}",
        f"  brewos-relay send {demo.device_id} set_mode mode=off {where}",
        f"  brewos-relay send {demo.device_id} set_mode mode=on {where}",
        "",
        "Ctrl-C ends the demo. What an attached app receives:",
        "",
    ]


def find_port() -> int:
    """Find the first free port from 3001 on."""
    for port in range(FIRST_PORT, FIRST_PORT + _PORTS_TRIED):
        if _is_free(port):
            return port
    raise SettingsError(
        f"ports {FIRST_PORT} to {FIRST_PORT + _PORTS_TRIED - 1} are all taken; give one with --port"
    )


def check_port(port: int) -> int:
    """Make sure that a port can be had; raises SettingsError."""
    if not _is_free(port):
        raise SettingsError(f"port {port} cannot be used on {HOST}; give another one with --port")
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if sys.platform != "win32":
            # As the server does it; otherwise a demo that has just ended would still be in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


async def _watch(demo: Demo, url: str, say: Callable[[str], None]) -> None:
    """Be the app: attach, and say what arrives."""

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
