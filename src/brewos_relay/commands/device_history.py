"""`brewos-relay device activity` and `rotate-key`: what was done with a machine, and giving it a new key."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from brewos_relay.commands.common import Failed, data_dir_option, device_id, failing_with
from brewos_relay.commands.registry import existing_registry, iso, json_option, now_ms, print_json
from brewos_relay.errors import DeviceUnknown, TooManyKeys
from brewos_relay.texts import is_showable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brewos_relay.registry.database import Database
    from brewos_relay.registry.records import StoredActivity

_KEY_SENT_WITHIN_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.25
_LOOK_AT: Final = 50

_device_argument = click.argument("device_id", metavar="ID", type=device_id)


@click.command()
@_device_argument
@click.option(
    "--limit",
    type=click.IntRange(1, 5000),
    metavar="COUNT",
    default=100,
    help="How many entries at most, the newest first (default: 100).",
)
@json_option
@data_dir_option
def activity(device_id: str, limit: int, as_json: bool, data_dir: Path | None) -> None:
    """Show who did what with a machine, and when.

    Entries are kept for 90 days, and at most 5,000 for each machine. What just happened may take 5 s to show.

    \b
    Example:
      brewos-relay device activity BRW-12AB34CD --limit 20
    """
    from brewos_relay.registry.accounts import all_users
    from brewos_relay.registry.activity import activity_of
    from brewos_relay.registry.devices import find_devices

    with failing_with(Failed), existing_registry(data_dir) as database, database.reading() as db:
        if not find_devices(db, [device_id]):
            raise DeviceUnknown(device_id)
        found = activity_of(db, device_id, limit=limit)
        emails = {user.id: user.email for user in all_users(db)}
    if not found:
        click.echo(f"Nothing was done with {device_id} yet.", err=True)
    if as_json:
        print_json(
            [
                {
                    "id": each.id,
                    "at": iso(each.at_ms),
                    "kind": each.kind,
                    "userId": each.user_id,
                    "email": emails.get(each.user_id or ""),
                    "detail": dict(each.detail),
                }
                for each in found
            ]
        )
        return
    for each in found:
        who = "-" if each.user_id is None else emails.get(each.user_id, each.user_id)
        detail = "  ".join(f"{key}={_shown(value)}" for key, value in each.detail.items())
        click.echo(f"{iso(each.at_ms)}  {each.kind:<13}  {who}  {detail}".rstrip())


@click.command("rotate-key")
@_device_argument
@data_dir_option
def rotate_key(device_id: str, data_dir: Path | None) -> None:
    """Have the running server send a machine a new key.

    Both keys work until the machine has come back with the new one; then the old one ends. A machine that
    does not understand it goes on with the key it has.

    \b
    Example:
      brewos-relay device rotate-key BRW-12AB34CD
    """
    from brewos_relay.registry.activity import activity_of
    from brewos_relay.registry.changes import note_change
    from brewos_relay.registry.devices import find_devices
    from brewos_relay.registry.keys import NEXT_KEYS_AT_MOST, gets_no_more_keys

    with failing_with(Failed), existing_registry(data_dir) as database:
        with database.writing() as db:
            found = find_devices(db, [device_id])
            if not found:
                raise DeviceUnknown(device_id)
            if gets_no_more_keys(found[0]):
                raise TooManyKeys(device_id, NEXT_KEYS_AT_MOST)
            before = activity_of(db, device_id, limit=1)
            note_change(db, "rotate_key", device_id=device_id, now_ms=now_ms())
        if not _key_sent(database, device_id, after_id=before[0].id if before else 0):
            raise Failed(
                f"no new key was sent to {device_id} within {_KEY_SENT_WITHIN_S:g} s: see that the server"
                f" runs with {database.location}, and that the machine is connected, and try again"
            )
    click.echo(
        f"A new key was sent to {device_id}. The old one works until the machine has come back with the new"
        " one, at its next connection.",
        err=True,
    )


def _key_sent(database: "Database", device_id: str, *, after_id: int) -> bool:
    """Wait until the server says that it has sent the machine a key; False if it does not, in time."""
    from brewos_relay.registry.activity import activity_of

    deadline_s = time.monotonic() + _KEY_SENT_WITHIN_S
    while True:
        with database.reading() as db:
            newest: Sequence[StoredActivity] = activity_of(db, device_id, limit=_LOOK_AT)
        if any(each.kind == "key_sent" and each.id > after_id for each in newest):
            return True
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_LOOK_EVERY_S)


def _shown(text: str) -> str:
    """Give a text of somebody else so that it stays on its line."""
    return text if is_showable(text) and len(text.split()) == 1 else repr(text)
