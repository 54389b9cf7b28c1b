"""`brewos-relay device users`, `give` and `take`: who has which machine, and as what."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from brewos_relay.commands.device import user_as_json
from brewos_relay.commands.failures import Failed, failing_with
from brewos_relay.commands.output import print_json, print_table
from brewos_relay.commands.parameters import (
    data_dir_option,
    device_argument,
    duration_s,
    json_option,
    role_choice,
    user_id,
)
from brewos_relay.commands.registry_access import existing_registry, find_user_id, warn_of_quota
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
    help="Whom: a user's id, or the e-mail address of an account; can be repeated.",
)


@click.command()
@device_argument
@json_option
@data_dir_option
def users(device_id: str, as_json: bool, data_dir: Path | None) -> None:
    """List who has a machine, as what, and until when.

    \b
    Example:
      brewos-relay device users BRW-12AB34CD
    """
    from brewos_relay.registry.access import users_of
    from brewos_relay.registry.devices import find_devices

    with failing_with(Failed), existing_registry(data_dir) as database, database.reading() as db:
        if not find_devices(db, [device_id]):
            raise DeviceUnknown(device_id)
        found = users_of(db, device_id, now_ms=now_ms())
    if not found:
        click.echo(f"Nobody has {device_id}: whoever claims it first becomes its owner.", err=True)
    if as_json:
        print_json([user_as_json(each) for each in found])
    elif found:
        print_table(
            ("USER", "ROLE", "UNTIL", "E-MAIL"),
            [
                (each.user_id, each.role, iso_time(each.until_ms) or "for ever", each.email or "")
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
    help="What they may do with it.",
)
@click.option(
    "--until",
    "until_s",
    type=duration_s,
    metavar="DURATION",
    help="For how long, from now on; for ever if this is left out. Not for owners.",
)
@data_dir_option
def give(
    device_id: str, users: tuple[str, ...], role: "Role", until_s: int | None, data_dir: Path | None
) -> None:
    """Give a machine to users, or change what they may do with it.

    A viewer sees everything and sends nothing; a member sends all but what could take the machine away; an
    owner may do everything. Either all of them get it or nobody does.

    \b
    Example:
      brewos-relay device give BRW-12AB34CD --user ada@example.com
      brewos-relay device give BRW-12AB34CD --user guest --role viewer --until 7d
    """
    from brewos_relay.registry import access
    from brewos_relay.registry.pairing_proof import trust_key

    if role == "owner" and until_s is not None:
        raise click.UsageError("an owner is one for ever; leave out --until, or take --role member")
    at_ms = now_ms()
    until_ms = None if until_s is None else at_ms + until_s * 1000
    limit = "" if until_ms is None else f", until {iso_time(until_ms)}"
    done: list[str] = []
    with failing_with(Failed), existing_registry(data_dir) as database, database.writing() as db:
        # All accounts before the device, as the server does, so that neither waits for the other.
        for user, id_ in {user: find_user_id(db, user) for user in users}.items():
            had = access.access_of(db, [(id_, device_id)], now_ms=at_ms).get((id_, device_id))
            if had is not None and (had.role, had.until_ms) == (role, until_ms):
                done.append(f"{user} is {role} of {device_id} already.")
                continue
            if had is None:
                access.give(db, device_id, id_, role=role, until_ms=until_ms, now_ms=at_ms)
            else:
                access.set_role(db, device_id, id_, role=role, until_ms=until_ms, now_ms=at_ms)
            done.append(f"{user} is {role} of {device_id} now{limit}.")
            warn_of_quota(db, [id_])
        # The one who runs the server says whose it is: that holds without a machine that connects.
        trust_key(db, device_id)
    click.echo("\n".join(done), err=True)


@click.command()
@device_argument
@_users_option
@data_dir_option
def take(device_id: str, users: tuple[str, ...], data_dir: Path | None) -> None:
    """Take a machine away from users.

    If one of them does not have it, or nobody would own it any more, nobody loses it. Apps that are attached
    are closed within a second. A token that names the machine itself still reaches it.

    \b
    Example:
      brewos-relay device take BRW-12AB34CD --user bob
    """
    from brewos_relay.registry.access import take

    with failing_with(Failed), existing_registry(data_dir) as database, database.writing() as db:
        without = [
            user
            for user in dict.fromkeys(users)
            if not take(db, device_id, find_user_id(db, user), now_ms=now_ms())
        ]
        if without:  # which undoes what was done for the others
            do = "does" if len(without) == 1 else "do"
            raise Failed(f"{', '.join(without)} {do} not have {device_id}; nothing was changed")
    for user in dict.fromkeys(users):
        click.echo(f"{user} does not have {device_id} any more.", err=True)


@click.command()
@device_argument
@data_dir_option
def release(device_id: str, data_dir: Path | None) -> None:
    """Take a machine from all of its users.

    It can be paired again then, which helps the buyer of a machine whose id a stranger registered and claimed
    first. Shares, codes and activity go; the machine stays registered. Pair it right after that.

    \b
    Example:
      brewos-relay device release BRW-12AB34CD
    """
    from brewos_relay.registry.pairing_proof import release_device

    with failing_with(Failed), existing_registry(data_dir) as database, database.writing() as db:
        had = release_device(db, device_id, now_ms=now_ms())
    users = "1 user" if had == 1 else f"{had} users"
    click.echo(f"Released {device_id}: {users} had it, and it can be paired again.", err=True)
