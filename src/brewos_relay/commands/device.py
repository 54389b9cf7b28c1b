"""`brewos-relay device …`: register, list and remove devices, and rotate their keys."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.output import local_time, print_json, print_table
from brewos_relay.commands.parameters import (
    HelpfulGroup,
    data_dir_option,
    device_argument,
    duration_s,
    json_option,
    user_id,
)
from brewos_relay.commands.registry_access import (
    NoRegistry,
    database_url,
    existing_registry,
    find_user_id,
    warn_about_quota,
)
from brewos_relay.errors import DeviceExists, DeviceFileError, DeviceUnknown, TooManyKeys
from brewos_relay.vocabulary import check_key, generate_key, iso_time, now_ms

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from brewos_relay.registry.database import Database
    from brewos_relay.registry.records import Device, DeviceUser, NewDevice, StoredActivity

_LINE_BYTES: Final = 1024
_KEY_SENT_WITHIN_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.25
_LOOK_AT: Final = 50
ROWS_AT_ONCE: Final = 1000
"""How many devices of a file are registered in one transaction."""


@click.group(cls=HelpfulGroup)
def device() -> None:
    """Register and remove devices, and set which users may use them.

    A running server applies changes within a second.

    \b
    Example:
      brewos-relay device add BRW-12AB34CD --name Kitchen --user ada
    """


@device.command()
@device_argument
@click.option("--key", help="Key that the device has already; - reads it from stdin.")
@click.option("--name", help="Name of the device, for people.")
@click.option(
    "--user",
    "users",
    multiple=True,
    metavar="ID",
    type=user_id,
    help="Owner: a user id, or the e-mail address of an account (repeatable).",
)
@data_dir_option
def add(
    device_id: str, key: str | None, name: str | None, users: tuple[str, ...], data_dir: Path | None
) -> None:
    """Register a device, with a new key or with that of --key.

    A new key is printed to stdout, once; the registry stores only its hash. Other users of this computer can
    read the arguments of a running command: use --key - to pass a key on stdin.

    \b
    Example:
      brewos-relay device add BRW-12AB34CD --name Kitchen --user ada
      brewos-relay device add BRW-12AB34CD --key - < device.key
    """
    from brewos_relay.auth.secrets import hash_secret
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.devices import add_devices
    from brewos_relay.registry.records import NewDevice

    stored_key = generate_key() if key is None else _read_key() if key == "-" else key
    try:
        check_key(stored_key)
        new = NewDevice(id=device_id, key_hash=hash_secret(stored_key), name=name, more_user_ids=users)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    with errors_as(Failed), Database.open(database_url(data_dir)) as database:
        try:
            with database.writing() as db:
                new = _for_accounts(db, new, {})
                add_devices(db, [new], now_ms=now_ms())
            with database.reading() as db:
                warn_about_quota(db, new.user_ids)
        except DeviceExists:
            raise Failed(
                f"{device_id} is already registered in {database.location};"
                " remove it first to register it with another key"
            ) from None
    click.echo(f"Registered {device_id} in {database.location}.", err=True)
    if key is None:
        click.echo("Its key is shown only once:", err=True)
        click.echo(stored_key)


@device.command("import")
@click.argument("file", metavar="FILE.csv", type=click.File("rb"))
@data_dir_option
def import_(file: BinaryIO, data_dir: Path | None) -> None:
    """Register all the devices of a CSV file; - reads stdin.

    Each line is id,key[,name[,user]] in UTF-8; separate several users with ;. A first line with these names
    is skipped. If a line is invalid, the error names it and nothing is stored. A device that is registered
    with the same key is left unchanged, so an interrupted import can be run again.

    \b
    Example:
      brewos-relay device import devices.csv
    """
    from brewos_relay.auth.secrets import hash_secret
    from brewos_relay.registry.bulk import run_steps
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.device_file import read_device_file
    from brewos_relay.registry.devices import find_devices

    with errors_as(Failed):
        numbered = list(read_device_file(file, hash_key=hash_secret))
        with Database.open(database_url(data_dir)) as database:
            with database.reading() as db:
                there = {one.id: one.key_hash for one in find_devices(db, [new.id for _, new in numbered])}
                _refuse_taken(
                    numbered,
                    {new.id for _, new in numbered if there.get(new.id, new.key_hash) != new.key_hash},
                )
                ids_by_user: dict[str, str] = {}
                rows = [_for_accounts(db, new, ids_by_user) for _, new in numbered if new.id not in there]
            try:
                with _progress(len(rows)) as on_progress:
                    run_steps(database, _import_steps(rows, on_progress))
            except DeviceExists as problem:  # since then
                _refuse_taken(numbered, set(problem.device_ids))
            with database.reading() as db:
                warn_about_quota(db, {user_id for new in rows for user_id in new.user_ids})
    same = f"; {len(there)} were already registered with the same keys" if there else ""
    click.echo(f"Registered {len(rows)} devices in {database.location}{same}.", err=True)


@device.command("list")
@click.option("--online/--offline", "online", default=None, help="Only devices that are online, or offline.")
@click.option("--owner", metavar="USER", help="Only devices of this owner: a user id or an e-mail address.")
@click.option("--find", metavar="TEXT", help="Only devices with this text in the id or name, in any case.")
@click.option(
    "--unseen-for",
    "unseen_s",
    type=duration_s,
    metavar="DURATION",
    help="Only devices that were not seen for this long.",
)
@json_option
@data_dir_option
def list_(
    *,
    online: bool | None,
    owner: str | None,
    find: str | None,
    unseen_s: int | None,
    as_json: bool,
    data_dir: Path | None,
) -> None:
    """List the registered devices and their users.

    LAST SEEN is when a device last connected or disconnected, in local time; while it is online, at least
    once an hour. PRESENCE is that of the last recorded event, so it is - for a device without users. A device
    of a server that was killed stays online for an hour.

    \b
    Example:
      brewos-relay device list --offline --unseen-for 7d
      brewos-relay device list --owner ada@example.com --json
    """
    from brewos_relay.registry.access import users_of
    from brewos_relay.registry.activity import present_devices
    from brewos_relay.registry.devices import all_devices

    found: list[tuple[Device, list[DeviceUser], bool | None]] = []
    with errors_as(Failed):
        try:
            with existing_registry(data_dir) as database, database.reading() as db:
                at_ms = now_ms()
                presence = present_devices(db, now_ms=at_ms)
                devices = all_devices(db)
                if find is not None:
                    wanted = find.casefold()
                    devices = [
                        each for each in devices if wanted in f"{each.id} {each.name or ''}".casefold()
                    ]
                if online is not None:
                    devices = [each for each in devices if presence.get(each.id, False) == online]
                if unseen_s is not None:
                    before_ms = at_ms - unseen_s * 1000
                    devices = [each for each in devices if (each.last_seen_ms or 0) <= before_ms]
                found = [
                    (each, users_of(db, each.id, now_ms=at_ms), presence.get(each.id)) for each in devices
                ]
                if owner is not None:
                    found = [entry for entry in found if owner.casefold() in _owners(entry[1])]
            if not found:
                note = f"in {database.location}; `brewos-relay device add` registers one"
                if (online, owner, find, unseen_s) != (None, None, None, None):
                    note = f"in {database.location} that match"
        except NoRegistry as problem:
            note = f"as {problem.message}"
    if not found:
        click.echo(f"No devices are registered, {note}.", err=True)
    if as_json:
        print_json(
            [
                {
                    "id": each.id,
                    "name": each.name,
                    "online": is_online,
                    "createdAt": iso_time(each.created_at_ms),
                    "lastSeen": iso_time(each.last_seen_ms),
                    "users": [user_as_json(user) for user in users],
                }
                for each, users, is_online in found
            ]
        )
    elif found:
        print_table(
            ("ID", "PRESENCE", "LAST SEEN", "NAME", "OWNER", "SHARED WITH"),
            [
                (
                    each.id,
                    {True: "online", False: "offline", None: "-"}[is_online],
                    "never" if each.last_seen_ms is None else local_time(each.last_seen_ms),
                    each.name or "",
                    ", ".join(user.email or user.user_id for user in users if user.role == "owner"),
                    ", ".join(
                        f"{user.email or user.user_id} ({user.role})"
                        for user in users
                        if user.role != "owner"
                    ),
                )
                for each, users, is_online in found
            ],
        )


def _owners(users: "Sequence[DeviceUser]") -> set[str]:
    """Return the ids and addresses of the owners among users."""
    names = [name for user in users if user.role == "owner" for name in (user.user_id, user.email)]
    return {name.casefold() for name in names if name is not None}


@device.command()
@device_argument
@data_dir_option
def remove(device_id: str, data_dir: Path | None) -> None:
    """Remove a device, its key, and its users' access to it.

    A running server closes the connections of the device and of its apps within a second.

    \b
    Example:
      brewos-relay device remove BRW-12AB34CD
    """
    from brewos_relay.registry.devices import remove_device

    with errors_as(Failed), existing_registry(data_dir) as database, database.writing() as db:
        if not remove_device(db, device_id, now_ms=now_ms()):
            raise DeviceUnknown(device_id)
    click.echo(f"Removed {device_id}.", err=True)


@device.command("rotate-key")
@device_argument
@data_dir_option
def rotate_key(device_id: str, data_dir: Path | None) -> None:
    """Have the running server send a device a new key.

    Both keys work until the device has connected with the new one; then the old one is revoked. A device that
    does not support key rotation keeps its key.

    \b
    Example:
      brewos-relay device rotate-key BRW-12AB34CD
    """
    from brewos_relay.registry.activity import activity_of
    from brewos_relay.registry.changes import publish_change
    from brewos_relay.registry.device_keys import NEXT_KEYS_AT_MOST, gets_no_more_keys
    from brewos_relay.registry.devices import find_devices

    with errors_as(Failed), existing_registry(data_dir) as database:
        with database.writing() as db:
            found = find_devices(db, [device_id])
            if not found:
                raise DeviceUnknown(device_id)
            if gets_no_more_keys(found[0]):
                raise TooManyKeys(device_id, NEXT_KEYS_AT_MOST)
            before = activity_of(db, device_id, limit=1)
            publish_change(db, "rotate_key", device_id=device_id, now_ms=now_ms())
        if not _key_sent(database, device_id, after_id=before[0].id if before else 0):
            raise Failed(
                f"no new key was sent to {device_id} within {_KEY_SENT_WITHIN_S:g} s: check that the server"
                f" runs with {database.location} and that the device is connected, and try again"
            )
    click.echo(
        f"A new key was sent to {device_id}. The old one works until the device has connected with the new"
        " one.",
        err=True,
    )


def user_as_json(user: "DeviceUser") -> dict[str, str | None]:
    """Return a user of a device as the JSON output has it."""
    return {"userId": user.user_id, "email": user.email, "role": user.role, "until": iso_time(user.until_ms)}


def _for_accounts(db: "Connection", new: "NewDevice", known: dict[str, str]) -> "NewDevice":
    """Replace e-mail addresses by the ids of their accounts. `known` caches the ids that were found."""
    for user in new.user_ids:
        if user not in known:
            known[user] = find_user_id(db, user)
    return replace(new, user_id=None, more_user_ids=tuple(known[user] for user in new.user_ids))


def _refuse_taken(numbered: "Sequence[tuple[int, NewDevice]]", taken: set[str]) -> None:
    """Raise DeviceFileError, naming the first line of a taken device id, if any id is taken."""
    if not taken:
        return
    line, id_ = next((line, new.id) for line, new in numbered if new.id in taken)
    more = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
    raise DeviceFileError(
        line,
        f"{id_}{more} is already registered with another key; delete the line, or remove the device first",
    )


def _import_steps(
    rows: "Sequence[NewDevice]", on_progress: Callable[[int], None] | None
) -> "Callable[[Connection], bool]":
    """Return a step for `run_steps`: each call registers up to 1000 more devices, and tells if any are left.

    `on_progress` is called with the number of devices that were registered since its last call.
    """
    from brewos_relay.registry.devices import add_devices

    rest = deque(rows)

    def step(db: "Connection") -> bool:
        some = [rest.popleft() for _ in range(min(ROWS_AT_ONCE, len(rest)))]
        add_devices(db, some, now_ms=now_ms(), on_progress=on_progress)
        return bool(rest)

    return step


def _read_key() -> str:
    """Read a key from the first line of stdin."""
    # `check_key` refuses a key that is not UTF-8.
    return sys.stdin.buffer.readline(_LINE_BYTES).decode(errors="replace").strip()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None] | None]:
    """Show a progress bar on stderr while the body runs, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with click.progressbar(length=total, label="Registering", file=sys.stderr) as bar:
        yield bar.update


def _key_sent(database: "Database", device_id: str, *, after_id: int) -> bool:
    """Wait until the server records that it has sent a key to the device; False if it does not in time."""
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
