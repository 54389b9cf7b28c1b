"""`brewos-relay device …`: the machines that may connect."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import click

from brewos_relay.cli.common import (
    Failed,
    HelpfulGroup,
    data_dir_option,
    device_id,
    failing_with,
    settings_from,
)
from brewos_relay.errors import DeviceExists, DeviceFileError


@click.group(cls=HelpfulGroup)
def device() -> None:
    """Register, list and remove machines and their keys.

    A running server takes changes on at once.

    \b
    Example:
      brewos-relay device add BRW-12AB34CD --name Kitchen --user ada
    """


@device.command()
@click.argument("device_id", metavar="ID", type=device_id)
@click.option("--key", help="The key that the machine has already; one is made if this is left out.")
@click.option("--name", help="What people call it.")
@click.option("--user", "users", multiple=True, metavar="ID", help="Give it to this user; can be repeated.")
@data_dir_option
def add(
    device_id: str, key: str | None, name: str | None, users: tuple[str, ...], data_dir: Path | None
) -> None:
    """Register a machine; a key that is made for it is shown once.

    The key alone goes to stdout, as only its hash is kept.

    \b
    Example:
      brewos-relay device add BRW-12AB34CD --name Kitchen --user ada
    """
    from brewos_relay.auth import keys
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.records import NewDevice

    stored_key = keys.generate_key() if key is None else key
    try:
        keys.check_key(stored_key)
        new = NewDevice(id=device_id, key_hash=keys.hash_key(stored_key), name=name, more_user_ids=users)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    with failing_with(Failed), Database.open(_database_url(data_dir)) as database:
        try:
            database.add_devices([new])
        except DeviceExists:
            raise Failed(f"{device_id} is registered already; remove it first to give it a new key") from None
    if key is None:
        click.echo(f"Registered {device_id}. Its key is shown only this once:", err=True)
        click.echo(stored_key)
    else:
        click.echo(f"Registered {device_id}.", err=True)


@device.command("import")
@click.argument("file", metavar="FILE.csv", type=click.File("rb"))
@data_dir_option
def import_(file: BinaryIO, data_dir: Path | None) -> None:
    """Register all the machines of a CSV file (`id,key[,name]`), or none if a line cannot be taken.

    The file is UTF-8; a first line `id,key,name` is skipped; `-` reads stdin.

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
    click.echo(f"Registered {len(numbered)} devices.", err=True)


@device.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
@data_dir_option
def list_(as_json: bool, data_dir: Path | None) -> None:
    """List the machines that are registered, and when each was last connected.

    \b
    Example:
      brewos-relay device list --json
    """
    from brewos_relay.registry.database import Database

    with failing_with(Failed), Database.open(_database_url(data_dir)) as database:
        found = database.devices()
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
    elif not found:
        click.echo("No devices are registered; `brewos-relay device add` registers one.", err=True)
    else:
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
    from brewos_relay.registry.database import Database

    with failing_with(Failed), Database.open(_database_url(data_dir)) as database:
        removed = database.remove_device(device_id)
    if not removed:
        raise Failed(f"{device_id} is not registered; `brewos-relay device list` shows what is")
    click.echo(f"Removed {device_id}.", err=True)


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
