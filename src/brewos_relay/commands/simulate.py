"""`brewos-relay simulate` and `demo`: simulated devices, without and with a relay."""

from typing import TYPE_CHECKING, BinaryIO, Final

import click

from brewos_relay.commands.failures import Failed, NotStarted, errors_as
from brewos_relay.commands.parameters import device_id, find_public_url, find_server, port_number, url_option

if TYPE_CHECKING:
    from brewos_relay.simulator.fleet import DeviceIdentity

_FIRST_ID: Final = "BRW-51000001"
_MOST_DEVICES: Final = 10_000
_IDS: Final = 2**32


@click.command()
@click.option(
    "--devices",
    "count",
    type=click.IntRange(1, _MOST_DEVICES),
    help="Number of devices (default: 1, or all of --keys).",
)
@url_option
@click.option(
    "--faithful",
    "faithful",
    flag_value=True,
    type=bool,
    default=False,
    help="Connect and send exactly as today's firmware does, with its weaknesses.",
)
@click.option(
    "--rich",
    "faithful",
    flag_value=False,
    type=bool,
    help="Send all that apps can show, and reconnect with a backoff (default).",
)
@click.option(
    "--speed",
    type=click.FloatRange(0.1, 1000),
    default=1.0,
    show_default=True,
    help="Speed of the devices' time, except during shots; connection timing does not change.",
)
@click.option(
    "--keys",
    "keys_file",
    type=click.File("rb"),
    metavar="FILE",
    help="Registered devices with their keys: a file for `device import`.",
)
@click.option(
    "--first-id",
    type=device_id,
    metavar="ID",
    default=_FIRST_ID,
    show_default=True,
    help="Id of the first device; ignored with --keys.",
)
def simulate(
    *,
    count: int | None,
    url: str | None,
    faithful: bool,
    speed: float,
    keys_file: BinaryIO | None,
    first_id: str,
) -> None:
    """Simulate devices until Ctrl-C.

    They heat up, brew and react to commands like real devices, and print their events. The first one is
    always in use; the others model households and are off most of the time.

    Without --keys, the devices register themselves with new keys, which end with the command, and print a
    link for each: open it while you are signed in to pair the device. If there is only one, its QR code is
    printed too. SIGHUP simulates a power cut: all devices restart.

    \b
    Example:
      brewos-relay simulate
      brewos-relay simulate --keys devices.csv --speed 6
      brewos-relay simulate --devices 200 --faithful --url https://relay.example.com
    """
    with errors_as(Failed):
        identities = _identities(count, keys_file, first_id)
        from brewos_relay.commands.run_simulation import run_fleet, show_qr
        from brewos_relay.errors import SettingsError
        from brewos_relay.simulator.connection_policy import FAITHFUL, RICH
        from brewos_relay.simulator.fleet import Fleet

        try:
            fleet_url, context = find_server(url)
            policy = FAITHFUL if faithful else RICH
            is_alone = len(identities) == 1
            run_fleet(
                lambda say: Fleet(
                    identities,
                    url=fleet_url,
                    ssl_context=context,
                    policy=policy,
                    speed=speed,
                    say=say,
                    link_url=find_public_url(url),
                    show_link=show_qr if is_alone else lambda _: None,
                )
            )
        except SettingsError as problem:
            raise click.UsageError(str(problem)) from None


@click.command()
@click.option("--port", type=port_number, help="Port to listen on (default: 3001, or the next free one).")
@click.option("--local", "is_local", is_flag=True, help="Keep it on this computer, without a QR code.")
@click.option("-v", "--verbose", is_flag=True, help="Print the messages that an app receives.")
def demo(port: int | None, is_local: bool, verbose: bool) -> None:
    """Run a relay, a simulated device and an app.

    Prints a link that signs a browser in, and a QR code of it for a phone in the same network, if this
    computer has a private address. The link works until the end of the demo. The demo needs no setup, and
    removes all its data at the end. Ctrl-C ends it.

    \b
    Example:
      brewos-relay demo
    """
    with errors_as(NotStarted, hint="; choose another port with --port"):
        from brewos_relay.commands.run_demo import run_demo

        run_demo(port, is_local=is_local, verbose=verbose)


def _identities(count: int | None, keys_file: BinaryIO | None, first_id: str) -> "list[DeviceIdentity]":
    """Return the ids and keys of the devices to simulate."""
    from brewos_relay.simulator.fleet import DeviceIdentity

    if keys_file is None:
        first = int(first_id.removeprefix("BRW-"), 16)
        wanted = 1 if count is None else count
        if first + wanted > _IDS:
            raise click.UsageError(
                f"there are fewer than {wanted} ids from {first_id} on; use a lower --first-id"
            )
        return [DeviceIdentity(device_id=f"BRW-{first + position:08X}") for position in range(wanted)]
    from brewos_relay.registry.device_file import read_device_file

    rows = read_device_file(keys_file, hash_key=str.encode)
    found = [DeviceIdentity(device_id=new.id, key=new.key_hash.decode()) for _, new in rows]
    if not found:
        raise click.UsageError(f"{keys_file.name} contains no devices")
    if (count or 0) > len(found):
        raise click.UsageError(f"{keys_file.name} contains {len(found)} devices, not {count}")
    return found[:count]
