"""`brewos-relay device …`: the machines that may connect."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from brewos_relay.cli.common import (
    Failed,
    HelpfulGroup,
    data_dir_option,
    device_id,
    failing_with,
    settings_from,
    user_id,
)
from brewos_relay.errors import DeviceExists, DeviceFileError

if TYPE_CHECKING:
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.records import Device

_LINE_BYTES: Final = 1024

_users_option = click.option(
    "--user",
    "users",
    multiple=True,
    required=True,
    metavar="ID",
    type=user_id,
    help="Whom; can be repeated.",
)


@click.group(cls=HelpfulGroup)
def device() -> None:
    """Register machines, and say who has them.

    A running server takes changes on at once.

    \b
    Example:
      brewos-relay device add BRW-12AB34CD --name Kitchen --user ada
    """


@device.command()
@click.argument("device_id", metavar="ID", type=device_id)
@click.option("--key", help="The key that the machine has already, or - to read it from stdin.")
@click.option("--name", help="What people call it.")
@click.option(
    "--user",
    "users",
    multiple=True,
    metavar="ID",
    type=user_id,
    help="Give it to this user; can be repeated.",
)
@data_dir_option
def add(
    device_id: str, key: str | None, name: str | None, users: tuple[str, ...], data_dir: Path | None
) -> None:
    """Register a machine; a key that is made for it is shown once.

    Without --key, one is made. It alone goes to stdout, and only its hash is kept.

    Other users of this computer can see a command line while it runs: --key - keeps the key out of it.

    \b
    Example:
      brewos-relay device add BRW-12AB34CD --name Kitchen --user ada
      brewos-relay device add BRW-12AB34CD --key - < machine.key
    """
    from brewos_relay.auth import keys
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.records import NewDevice

    stored_key = keys.generate_key() if key is None else _read_key() if key == "-" else key
    try:
        keys.check_key(stored_key)
        new = NewDevice(id=device_id, key_hash=keys.hash_key(stored_key), name=name, more_user_ids=users)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    with failing_with(Failed), Database.open(_database_url(data_dir)) as database:
        try:
            database.add_devices([new])
        except DeviceExists:
            raise Failed(
                f"{device_id} is registered already in {database.location};"
                " remove it first to give it a new key"
            ) from None
    click.echo(f"Registered {device_id} in {database.location}.", err=True)
    if key is None:
        click.echo("Its key is shown only this once:", err=True)
        click.echo(stored_key)


@device.command("import")
@click.argument("file", metavar="FILE.csv", type=click.File("rb"))
@data_dir_option
def import_(file: BinaryIO, data_dir: Path | None) -> None:
    """Register all the machines of a CSV file, or none of them.

    A line is id,key[,name[,user]], in UTF-8, where ; stands between several users. A first line with these
    names is skipped. If a line cannot be taken, it is named and nothing is stored. - reads stdin.

    \b
    Example:
      brewos-relay device import machines.csv
    """
    from brewos_relay.auth import keys
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.devicefile import read_device_file

    with failing_with(Failed):
        numbered = list(
            read_device_file(
                file, parse_id=keys.parse_device_id, check_key=keys.check_key, hash_key=keys.hash_key
            )
        )
        with Database.open(_database_url(data_dir)) as database, _progress(len(numbered)) as on_progress:
            try:
                database.add_devices([new for _, new in numbered], on_progress=on_progress)
            except DeviceExists as problem:
                taken = set(problem.device_ids)
                line, id_ = next((line, new.id) for line, new in numbered if new.id in taken)
                more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
                raise DeviceFileError(
                    line, f"{id_}{more} is registered already; leave it out, or remove it first"
                ) from None
    click.echo(f"Registered {len(numbered)} devices in {database.location}.", err=True)


@device.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@data_dir_option
def list_(as_json: bool, data_dir: Path | None) -> None:
    """List the machines that are registered.

    LAST SEEN is when a machine last came or went: for one that is connected now, when it came.

    \b
    Example:
      brewos-relay device list --json
    """
    found: list[Device] = []
    with failing_with(Failed):
        try:
            with _existing(data_dir) as database:
                found = database.devices()
            if not found:
                note = f"in {database.location}; `brewos-relay device add` registers one"
        except NoRegistry as problem:
            note = f"as {problem.message}"
    if not found:
        click.echo(f"No devices are registered, {note}.", err=True)
    if as_json:
        content = [
            {
                "id": each.id,
                "name": each.name,
                "createdAt": _iso(each.created_at_ms),
                "lastSeen": _iso(each.last_seen_ms),
            }
            for each in found
        ]
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    elif found:
        rows = [("ID", "LAST SEEN", "NAME")]
        rows += [(each.id, _iso(each.last_seen_ms) or "never", each.name or "") for each in found]
        click.echo("\n".join(f"{id_:<12}  {seen:<24}  {name}".rstrip() for id_, seen, name in rows))


@device.command()
@click.argument("device_id", metavar="ID", type=device_id)
@data_dir_option
def remove(device_id: str, data_dir: Path | None) -> None:
    """Forget a machine, its key, and who had it.

    A connection that it has at the moment goes on until it ends.

    \b
    Example:
      brewos-relay device remove BRW-12AB34CD
    """
    with failing_with(Failed), _existing(data_dir) as database:
        removed = database.remove_device(device_id)
    if not removed:
        raise Failed(
            f"{device_id} is not registered in {database.location}; `brewos-relay device list` shows what is"
        )
    click.echo(f"Removed {device_id}.", err=True)


@device.command()
@click.argument("device_id", metavar="ID", type=device_id)
@_users_option
@data_dir_option
def give(device_id: str, users: tuple[str, ...], data_dir: Path | None) -> None:
    """Give a machine that is registered to users.

    Their tokens reach it from then on. Either all of them get it or nobody does.

    \b
    Example:
      brewos-relay device give BRW-12AB34CD --user ada --user bob
    """
    with failing_with(Failed), _existing(data_dir) as database:
        had_it = database.give_device(device_id, users)
    for user in dict.fromkeys(users):
        done = f"{user} has {device_id} already" if user in had_it else f"{user} has {device_id} now"
        click.echo(f"{done}.", err=True)


@device.command()
@click.argument("device_id", metavar="ID", type=device_id)
@_users_option
@data_dir_option
def take(device_id: str, users: tuple[str, ...], data_dir: Path | None) -> None:
    """Take a machine away from users.

    If one of them does not have it, nobody loses it. A token that names the machine reaches it still, and an
    app that is attached stays until its connection ends.

    \b
    Example:
      brewos-relay device take BRW-12AB34CD --user bob
    """
    with failing_with(Failed), _existing(data_dir) as database:
        database.take_device(device_id, users)
    for user in dict.fromkeys(users):
        click.echo(f"{user} does not have {device_id} any more.", err=True)


class NoRegistry(Failed):
    """Ends a command that works on what is registered where nothing ever was."""


@contextmanager
def _existing(data_dir: Path | None) -> Iterator["Database"]:
    """Open the registry for as long as the body runs; NoRegistry if its file is missing, and none is made."""
    from brewos_relay.registry.database import Database, database_file

    url = _database_url(data_dir)
    file = database_file(url)
    if file is not None and not file.exists():
        raise NoRegistry(
            f"there is no registry {file.absolute()}; go to the folder of the relay, or name its data folder"
            " with --data-dir"
        )
    with Database.open(url) as database:
        yield database


def _read_key() -> str:
    """Read a key from the first line of stdin."""
    # What is not UTF-8 is no key, which is for `check_key` to say.
    return sys.stdin.buffer.readline(_LINE_BYTES).decode(errors="replace").strip()


def _database_url(data_dir: Path | None) -> str:
    return settings_from(data_dir=data_dir).resolved_database_url()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a bar on stderr for as long as the body runs, if somebody can see it."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=total, label="Registering", file=sys.stderr) as bar:
        yield bar.update


def _iso(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
