"""What the commands share that read or change the registry: finding it, and showing what is in it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brewos_relay.commands.failures import Failed
from brewos_relay.commands.parameters import settings_from
from brewos_relay.errors import DeviceUnknown
from brewos_relay.vocabulary import now_ms

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from brewos_relay.registry.database import Database


class NoRegistry(Failed):
    """Ends a command that works on what is registered where nothing ever was."""


def database_url(data_dir: Path | None) -> str:
    """Give the URL of the registry that the settings name."""
    return settings_from(data_dir=data_dir).resolved_database_url()


@contextmanager
def existing_registry(data_dir: Path | None) -> Iterator["Database"]:
    """Open the registry for as long as the body runs; NoRegistry if its file is missing, and none is made.

    DeviceUnknown becomes an error that says where the device was looked for.
    """
    from brewos_relay.registry.database import Database

    url = database_url(data_dir)
    require_file(url)
    with Database.open(url) as database:
        try:
            yield database
        except DeviceUnknown as problem:
            raise Failed(
                f"{problem.device_id} is not registered in {database.location};"
                " `brewos-relay device list` shows what is"
            ) from None


def require_file(url: str) -> None:
    """Raise NoRegistry if the registry is to be a file that is missing."""
    from brewos_relay.registry.engine import database_file

    file = database_file(url)
    if file is not None and not file.exists():
        raise NoRegistry(
            f"there is no registry {file.absolute()}; go to the folder of the relay, or name its data folder"
            " with --data-dir"
        )


def find_user_id(db: "Connection", given: str) -> str:
    """Give the id of the account with this e-mail address; what is none's is a user id as it stands."""
    if "@" not in given:
        return given
    from brewos_relay.registry.access import lock_account
    from brewos_relay.registry.accounts import find_user_by_email

    account = find_user_by_email(db, given)
    # Locked, so that the machine is not given to an account that is removed at the same time.
    if account is None or not lock_account(db, account.id):
        click.echo(f"There is no account {given}: it is taken for the user id of a token.", err=True)
        return given
    return account.id


def warn_of_quota(db: "Connection", user_ids: Iterable[str]) -> None:
    """Say which of these users have more machines now than they could get by claims and shares."""
    from brewos_relay.registry.pairing_limits import machine_count

    limit = settings_from().machines_per_account
    for user_id in sorted(set(user_ids)):
        count = machine_count(db, user_id, now_ms=now_ms())
        if count > limit:
            click.echo(
                f"{user_id} has {count} machines now, more than BREWOS_RELAY_MACHINES_PER_ACCOUNT ({limit}).",
                err=True,
            )
