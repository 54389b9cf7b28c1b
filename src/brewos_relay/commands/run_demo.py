"""The work of `brewos-relay demo`: a relay, a simulated device and an app, with temporary data."""

import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import trio

from brewos_relay.auth.secrets import generate_secret, hash_secret
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.commands.message_lines import format_line
from brewos_relay.commands.output import discard_output
from brewos_relay.commands.qr_code import can_print_qr, qr_lines
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
from brewos_relay.server.local_ca import is_private, replace_file
from brewos_relay.settings import Settings
from brewos_relay.settings.dotenv_file import with_settings
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.simulator.connection_policy import RICH
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.simulated_device import SimulatedDevice
from brewos_relay.simulator.usage_patterns import Barista
from brewos_relay.telemetry.line_writer import LineWriter
from brewos_relay.telemetry.logs import has_colors
from brewos_relay.vocabulary import generate_key, now_ms

HOST: Final = "127.0.0.1"
FIRST_PORT: Final = 3001
DEVICE_ID: Final = "BRW-00C0FFEE"
EMAIL: Final = "demo@example.org"
INVITE_S: Final = 30 * 86_400.0  # longer than any demo
INVITE_BYTES: Final = 16  # a short link makes a small QR code
RECONNECT_S: Final = 3.0
SPEED: Final = 6.0  # the machine is warm after half a minute
SHOT_EVERY_S: Final = 300.0  # of the machine's time: every 50 s of real time
_PORTS_TRIED: Final = 100

#: Short pauses, as people watch the demo.
POLICY: Final = replace(RICH, reconnect_s=RECONNECT_S, refused_s=RECONNECT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The settings and credentials of a demo.

    `invite` is the secret of a link that signs the demo's user in; the user owns the device.
    """

    settings: Settings
    device_id: str
    lan_address: str | None
    """The address of this computer for phones in its network, if they may open the demo."""
    device_key: str = field(repr=False)
    invite: str = field(repr=False)
    token: str = field(repr=False)


def run_demo(port: int | None, *, is_local: bool = False, verbose: bool = False) -> None:
    """Run the demo until Ctrl-C. `port` None selects 3001 or the next free one, 0 any free one.

    Without `is_local`, phones in the same network can open it. `verbose` prints each message. Raises
    SettingsError if the port is taken.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="brewos-relay-demo-") as folder:
            lan = None if is_local else find_lan_address()
            demo = prepare(
                Path(folder), port=find_port() if port is None else check_port(port), lan_address=lan
            )
            trio.run(_run_until_interrupted, demo, verbose, clock=RunningClock())
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError:
        discard_output()


def prepare(folder: Path, *, port: int, lan_address: str | None = None) -> Demo:
    """Create a registry in `folder` with one device and its owner, and the credentials to use it."""
    secret = generate_secret()
    settings = Settings(
        host=HOST if lan_address is None else "",
        port=port,
        # Strangers in the network can do nothing without the link.
        pairing="closed",
        sign_up="invited",
        jwt_secret=secret,
        data_dir=folder,
        # The simulated device keeps its key after a short connection, so draining need not wait for it.
        limits=ServerLimits(device_min_age_s=0.0, drain_s=0.5, close_s=0.3),
    )
    key = generate_key()
    device = NewDevice(id=DEVICE_ID, key_hash=hash_secret(key), name="Simulated machine")
    invite = secrets.token_urlsafe(INVITE_BYTES)
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
    return Demo(
        settings=settings,
        device_id=DEVICE_ID,
        lan_address=lan_address,
        device_key=key,
        invite=invite,
        token=token,
    )


async def demonstrate(
    demo: Demo,
    *,
    say: Callable[[str], None],
    until: Callable[[], Awaitable[object]],
    verbose: bool = False,
    colors: bool = False,
) -> None:
    """Run the server, and a device that has just been switched on; if `verbose`, an app that prints messages.

    **Owns:** the server, and the tasks of the device and the app.
    **Ends when:** `until` returns; device and app close their connections first, then the server drains.
    """
    async with open_server(demo.settings, demo=True) as server:
        url = f"http://{HOST}:{server.addresses[0][1]}"
        write_client_settings(demo, url)
        for line in introduction(demo, url, colors=colors):
            say(line)
        machine = Machine(device_id=demo.device_id, now_ms=now_ms, rich=True)
        machine.switch_on()
        simulator = SimulatedDevice(
            machine,
            url=url,
            key=demo.device_key,
            policy=POLICY,
            usage=Barista(SHOT_EVERY_S),
            speed=SPEED,
            shots_in_real_time=True,
            announce=lambda text: say(f"device {text}") if verbose else None,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(simulator.run)
            if verbose:
                nursery.start_soon(_watch, demo, url, say)
            await until()
            nursery.cancel_scope.cancel()


def introduction(demo: Demo, url: str, *, colors: bool = False) -> list[str]:
    """Return the lines that describe the demo: commands to try, a QR code, and at the end the link.

    They fit into a terminal of 80 columns and 24 lines.
    """
    lines = [
        f"Send commands from another terminal, after: cd {demo.settings.data_dir}",
        f"  brewos-relay tail {demo.device_id}",
        f"  brewos-relay send {demo.device_id} set_temp boiler=brew temp=96",
    ]
    if demo.lan_address is not None and can_print_qr(sys.stdout):
        port = urlsplit(url).port
        code = qr_lines(_link(demo, f"http://{demo.lan_address}:{port}"), colors=colors)
        beside = {
            6: "Scan this with a phone",
            7: "in the same network,",
            8: "or open the link below.",
            10: "Ctrl-C ends the demo.",
        }
        lines += [f"{line}  {beside.get(number, '')}".rstrip() for number, line in enumerate(code)]
    else:
        lines.append("Ctrl-C ends the demo. Open this link:")
    return [*lines, _link(demo, url)]


def write_client_settings(demo: Demo, url: str) -> None:
    """Write the URL and the token for the commands into the folder of the demo."""
    variables = {"BREWOS_RELAY_URL": url, "BREWOS_RELAY_TOKEN": demo.token}
    replace_file(demo.settings.data_dir / ".env", with_settings("", variables).encode())


def _link(demo: Demo, url: str) -> str:
    return f"{url}/login#demo&invite={demo.invite}"


def find_lan_address() -> str | None:
    """Return the address of this computer in a private network; None if it has none."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # a documentation address; this sends nothing
        address = str(probe.getsockname()[0])
        if is_private(ip_address(address)) and not ip_address(address).is_loopback:
            return address
    return None


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


async def _run_until_interrupted(demo: Demo, verbose: bool) -> None:
    output = LineWriter(sys.stdout)

    def say(line: str) -> None:
        if output.is_broken:
            raise BrokenPipeError
        output.put(line)

    try:
        await _demonstrate_until_interrupted(demo, say, verbose)
    finally:
        output.flush()


async def _demonstrate_until_interrupted(demo: Demo, say: Callable[[str], None], verbose: bool) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        await demonstrate(
            demo, say=say, until=signals.__anext__, verbose=verbose, colors=has_colors(sys.stdout)
        )
