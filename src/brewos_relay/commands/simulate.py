"""`brewos-relay simulate` and `demo`: simulated machines, for a relay and with one."""

from typing import TYPE_CHECKING, BinaryIO, Final

import click

from brewos_relay.commands.failures import Failed, NotStarted, failing_with
from brewos_relay.commands.parameters import device_id, find_url, port_number, url_option

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
    help="How many machines (default: 1, or all of --keys).",
)
@url_option
@click.option(
    "--faithful",
    "faithful",
    flag_value=True,
    type=bool,
    default=False,
    help="Connect and speak just as today's firmware does, with all that it does not forgive.",
)
@click.option(
    "--rich",
    "faithful",
    flag_value=False,
    type=bool,
    help="Tell all that apps can show (this is what is done).",
)
@click.option(
    "--speed",
    type=click.FloatRange(0.1, 1000),
    default=1.0,
    show_default=True,
    help="How fast the machines' time passes; that of their connections does not change.",
)
@click.option(
    "--keys",
    "keys_file",
    type=click.File("rb"),
    metavar="FILE",
    help="Machines that are registered, with their keys: the file of `device import`.",
)
@click.option(
    "--first-id",
    type=device_id,
    metavar="ID",
    default=_FIRST_ID,
    show_default=True,
    help="Id of the first machine without --keys.",
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
    """Simulate machines, until Ctrl-C.

    They heat, brew and obey as real ones do, and now and then a line says what happens. The first one is in
    use all the time; the others are kitchens, most of which are off at any moment.

    Without --keys they register themselves, with keys that are theirs until the command ends, and say where
    they can be claimed: open that link, signed in, and the machine is yours. SIGHUP is a power cut: all of
    them begin anew.

    \b
    Example:
      brewos-relay simulate
      brewos-relay simulate --keys devices.csv --speed 6
      brewos-relay simulate --devices 200 --faithful --url https://relay.example.com
    """
    with failing_with(Failed):
        identities = _identities(count, keys_file, first_id)
        from brewos_relay.commands.run_simulation import run_fleet
        from brewos_relay.errors import SettingsError
        from brewos_relay.simulator.connection_policy import FAITHFUL, RICH
        from brewos_relay.simulator.fleet import Fleet

        try:
            fleet_url = find_url(url)
            policy = FAITHFUL if faithful else RICH
            run_fleet(lambda say: Fleet(identities, url=fleet_url, policy=policy, speed=speed, say=say))
        except SettingsError as problem:
            raise click.UsageError(str(problem)) from None


@click.command()
@click.option("--port", type=port_number, help="Port to listen on; a free one if this is left out.")
def demo(port: int | None) -> None:
    """Show a relay, a simulated machine and an app at work.

    The app prints what arrives. Nothing has to be set up, and nothing is left behind. Ctrl-C ends it.

    \b
    Example:
      brewos-relay demo
    """
    with failing_with(NotStarted, hint="; choose another port with --port"):
        from brewos_relay.commands.run_demo import run_demo

        run_demo(port)


def _identities(count: int | None, keys_file: BinaryIO | None, first_id: str) -> "list[DeviceIdentity]":
    """Give the machines that there are to be."""
    from brewos_relay.simulator.fleet import DeviceIdentity

    if keys_file is None:
        first = int(first_id.removeprefix("BRW-"), 16)
        wanted = 1 if count is None else count
        if first + wanted > _IDS:
            raise click.UsageError(f"there are no {wanted} ids from {first_id} on; give another --first-id")
        return [DeviceIdentity(device_id=f"BRW-{first + position:08X}") for position in range(wanted)]
    from brewos_relay.registry.device_file import read_device_file

    rows = read_device_file(keys_file, hash_key=str.encode)
    found = [DeviceIdentity(device_id=new.id, key=new.key_hash.decode()) for _, new in rows]
    if not found:
        raise click.UsageError(f"{keys_file.name} has no machines in it")
    if (count or 0) > len(found):
        raise click.UsageError(f"{keys_file.name} has {len(found)} machines, not {count}")
    return found[:count]
