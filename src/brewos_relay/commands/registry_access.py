"""How commands open the registry, and look up the users that are named on the command line."""

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
    """The command needs a registry, and its file does not exist."""


def database_url(data_dir: Path | None) -> str:
    """Return the URL of the registry from the settings."""
    return settings_from(data_dir=data_dir).resolved_database_url()


@contextmanager
def existing_registry(data_dir: Path | None) -> Iterator["Database"]:
    """Open the registry of the settings while the body runs; unlike `Database.open`, create no file.

    Raises NoRegistry if its file does not exist. If the body raises DeviceUnknown, raises Failed instead,
    with the location of the registry.
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
                " `brewos-relay device list` shows the registered ones"
            ) from None


def require_file(url: str) -> None:
    """Raise NoRegistry if the URL names a file that does not exist."""
    from brewos_relay.registry.engine import database_file

    file = database_file(url)
    if file is not None and not file.exists():
        raise NoRegistry(
            f"there is no registry {file.absolute()}; change to the relay's directory,"
            " or name its data directory with --data-dir"
        )


def find_user_id(db: "Connection", given: str) -> str:
    """Return the id of the account with this e-mail address.

    Any other text is a user id, and is returned unchanged.
    """
    if "@" not in given:
        return given
    from brewos_relay.registry.access import lock_account
    from brewos_relay.registry.accounts import find_user_by_email

    account = find_user_by_email(db, given)
    # Lock the account, so that the device is not given to one that is being removed.
    if account is None or not lock_account(db, account.id):
        click.echo(f"There is no account {given}; using it as the user id of a token.", err=True)
        return given
    return account.id


def warn_about_quota(db: "Connection", user_ids: Iterable[str]) -> None:
    """Warn of users who now have more devices than pairing and sharing allow."""
    from brewos_relay.registry.pairing_limits import machine_count

    limit = settings_from().machines_per_account
    for user_id in sorted(set(user_ids)):
        count = machine_count(db, user_id, now_ms=now_ms())
        if count > limit:
            click.echo(
                f"{user_id} has {count} devices now, more than BREWOS_RELAY_MACHINES_PER_ACCOUNT ({limit}).",
                err=True,
            )
