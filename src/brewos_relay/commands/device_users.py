"""`brewos-relay device users`, `give`, `take` and `release`: the users of a device and their roles."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from brewos_relay.commands.device import user_as_json
from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.output import print_json, print_table
from brewos_relay.commands.parameters import (
    data_dir_option,
    device_argument,
    duration_s,
    json_option,
    role_choice,
    user_id,
)
from brewos_relay.commands.registry_access import existing_registry, find_user_id, warn_about_quota
from brewos_relay.errors import DeviceUnknown
from brewos_relay.vocabulary import iso_time, now_ms

if TYPE_CHECKING:
    from brewos_relay.vocabulary import Role

_users_option = click.option(
    "--user",
    "users",
    multiple=True,
    required=True,
    metavar="USER",
    type=user_id,
    help="A user id, or the e-mail address of an account (repeatable).",
)


@click.command()
@device_argument
@json_option
@data_dir_option
def users(device_id: str, as_json: bool, data_dir: Path | None) -> None:
    """List the users of a device, with their roles.

    \b
    Example:
      brewos-relay device users BRW-12AB34CD
    """
    from brewos_relay.registry.access import users_of
    from brewos_relay.registry.devices import find_devices

    with errors_as(Failed), existing_registry(data_dir) as database, database.reading() as db:
        if not find_devices(db, [device_id]):
            raise DeviceUnknown(device_id)
        found = users_of(db, device_id, now_ms=now_ms())
    if not found:
        click.echo(f"{device_id} has no users: the first user who pairs it becomes its owner.", err=True)
    if as_json:
        print_json([user_as_json(each) for each in found])
    elif found:
        print_table(
            ("USER", "ROLE", "UNTIL", "E-MAIL"),
            [
                (each.user_id, each.role, iso_time(each.until_ms) or "unlimited", each.email or "")
                for each in found
            ],
        )


@click.command()
@device_argument
@_users_option
@click.option(
    "--role",
    type=role_choice,
    default="owner",
    show_default=True,
    help="The role of the users.",
)
@click.option(
    "--until",
    "until_s",
    type=duration_s,
    metavar="DURATION",
    help="How long the users keep the role (default: unlimited). Not for owners.",
)
@data_dir_option
def give(
    device_id: str, users: tuple[str, ...], role: "Role", until_s: int | None, data_dir: Path | None
) -> None:
    """Give users a role for a device, or change their role.

    A viewer sees everything and sends nothing; a member also sends the commands that cannot take the device
    away from its owners; an owner may do everything. If one of the users cannot get the role, none of them
    does.

    \b
    Example:
      brewos-relay device give BRW-12AB34CD --user ada@example.com
      brewos-relay device give BRW-12AB34CD --user guest --role viewer --until 7d
    """
    from brewos_relay.registry import access
    from brewos_relay.registry.pairing_proof import trust_key

    if role == "owner" and until_s is not None:
        raise click.UsageError("an owner's role has no end; omit --until, or use --role member")
    at_ms = now_ms()
    until_ms = None if until_s is None else at_ms + until_s * 1000
    limit = "" if until_ms is None else f", until {iso_time(until_ms)}"
    done: list[str] = []
    with errors_as(Failed), existing_registry(data_dir) as database, database.writing() as db:
        # Lock all accounts before the device, as the server does, to avoid a deadlock.
        for user, id_ in {user: find_user_id(db, user) for user in users}.items():
            had = access.access_of(db, [(id_, device_id)], now_ms=at_ms).get((id_, device_id))
            if had is not None and (had.role, had.until_ms) == (role, until_ms):
                done.append(f"{user} is already {role} of {device_id}.")
                continue
            if had is None:
                access.give(db, device_id, id_, role=role, until_ms=until_ms, now_ms=at_ms)
            else:
                access.set_role(db, device_id, id_, role=role, until_ms=until_ms, now_ms=at_ms)
            done.append(f"{user} is {role} of {device_id} now{limit}.")
            warn_about_quota(db, [id_])
        # The operator decides who owns the device, so its key needs no confirmation by a connection.
        trust_key(db, device_id)
    click.echo("\n".join(done), err=True)


@click.command()
@device_argument
@_users_option
@data_dir_option
def take(device_id: str, users: tuple[str, ...], data_dir: Path | None) -> None:
    """Take a device away from users.

    Nothing is changed if one of the users does not have the device, or if it would have no owner.
    Connected apps are closed within a second. A token that names the device itself keeps its access.

    \b
    Example:
      brewos-relay device take BRW-12AB34CD --user bob
    """
    from brewos_relay.registry.access import take

    with errors_as(Failed), existing_registry(data_dir) as database, database.writing() as db:
        without = [
            user
            for user in dict.fromkeys(users)
            if not take(db, device_id, find_user_id(db, user), now_ms=now_ms())
        ]
        if without:  # the exception rolls back the changes for the others
            do = "does" if len(without) == 1 else "do"
            raise Failed(f"{', '.join(without)} {do} not have {device_id}; nothing was changed")
    for user in dict.fromkeys(users):
        click.echo(f"{user} no longer has {device_id}.", err=True)


@click.command()
@device_argument
@data_dir_option
def release(device_id: str, data_dir: Path | None) -> None:
    """Take a device away from all of its users.

    It can be paired again then. This helps the buyer of a device whose id a stranger has registered and
    paired first. Its shares, codes and activity are removed; the device stays registered. Pair it immediately
    afterwards.

    \b
    Example:
      brewos-relay device release BRW-12AB34CD
    """
    from brewos_relay.registry.pairing_proof import release_device

    with errors_as(Failed), existing_registry(data_dir) as database, database.writing() as db:
        had = release_device(db, device_id, now_ms=now_ms())
    users = "1 user" if had == 1 else f"{had} users"
    click.echo(f"Released {device_id}: {users} had it, and it can be paired again.", err=True)
