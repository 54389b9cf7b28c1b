"""`brewos-relay user …`: the accounts of a relay."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.output import print_json, print_table
from brewos_relay.commands.parameters import (
    HelpfulGroup,
    account_email,
    base_url,
    data_dir_option,
    duration_s,
    json_option,
    settings_from,
)
from brewos_relay.commands.registry_access import existing_registry
from brewos_relay.vocabulary import iso_time, now_ms

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from brewos_relay.registry.records import User

_LINE_BYTES: Final = 1024


_email_argument = click.argument("email", metavar="EMAIL", type=account_email)


@click.group(cls=HelpfulGroup)
def user() -> None:
    """Invite users, and manage their accounts.

    A running server applies changes within a second.

    \b
    Example:
      brewos-relay user invite ada@example.com --admin
    """


@user.command()
@_email_argument
@click.option(
    "--admin/--no-admin",
    default=None,
    help="Invite an administrator, or not (default: only if there is no administrator yet).",
)
@click.option(
    "--ttl",
    "ttl_s",
    type=duration_s,
    metavar="DURATION",
    default="7d",
    show_default=True,
    help="How long the link is valid.",
)
@click.option("--url", metavar="URL", type=base_url, help="Public URL of the server (PUBLIC_URL).")
@data_dir_option
def invite(email: str, admin: bool | None, ttl_s: int, url: str | None, data_dir: Path | None) -> None:
    """Print a link that signs a user in, once.

    The link creates an account if the address has none. The first invitation makes an administrator; later
    ones do so with --admin. Anyone who has the link can use it: send it over a channel that you trust.

    \b
    Example:
      brewos-relay user invite ada@example.com --url https://relay.example.com
    """
    from brewos_relay.auth.secrets import generate_secret_token, hash_secret
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.invites import add_invite, is_first_administrator

    token = generate_secret_token()
    with errors_as(Failed):
        settings = settings_from(data_dir=data_dir, public_url=url)
        with Database.open(settings.resolved_database_url()) as database, database.writing() as db:
            at_ms = now_ms()
            expires_at_ms = at_ms + ttl_s * 1000
            if admin is None:
                admin = is_first_administrator(db, email, now_ms=at_ms)
            try:
                add_invite(
                    db,
                    email=email,
                    token_hash=hash_secret(token),
                    is_admin=admin,
                    expires_at_ms=expires_at_ms,
                    now_ms=at_ms,
                )
            except ValueError as problem:
                raise Failed(str(problem)) from None
    base = settings.public_url
    if base is None:
        base = f"{'https' if settings.speaks_tls else 'http'}://localhost:{settings.port}"
        click.echo("This link works only on this computer; set --url or PUBLIC_URL for others.", err=True)
    role = " as an administrator" if admin else ""
    click.echo(f"This link signs {email} in{role}, once, until {iso_time(expires_at_ms)}:", err=True)
    click.echo(f"{base}/login#invite={token}")


@user.command("list")
@json_option
@data_dir_option
def list_(as_json: bool, data_dir: Path | None) -> None:
    """List the accounts.

    \b
    Example:
      brewos-relay user list --json
    """
    from brewos_relay.registry.accounts import all_users

    with errors_as(Failed), existing_registry(data_dir) as database, database.reading() as db:
        found = all_users(db)
        where = database.location
    if not found:
        click.echo(f"There are no accounts in {where}; `brewos-relay user invite` invites a user.", err=True)
    if as_json:
        print_json(
            [
                {
                    "id": each.id,
                    "email": each.email,
                    "name": each.name,
                    "isAdmin": each.is_admin,
                    "hasPassword": each.has_password,
                    "createdAt": iso_time(each.created_at_ms),
                }
                for each in found
            ]
        )
    elif found:
        print_table(
            ("EMAIL", "ID", "ADMIN", "PASSWORD", "CREATED", "NAME"),
            [
                (
                    each.email,
                    each.id,
                    "yes" if each.is_admin else "no",
                    "yes" if each.has_password else "no",
                    iso_time(each.created_at_ms) or "",
                    each.name or "",
                )
                for each in found
            ],
        )


@user.command()
@_email_argument
@data_dir_option
def remove(email: str, data_dir: Path | None) -> None:
    """Remove an account.

    Its login sessions and its access to devices are removed with it. The user is signed out immediately. A
    device without another owner can be paired again. If the command is interrupted, a running server
    completes the removal within an hour.

    \b
    Example:
      brewos-relay user remove bob@example.com
    """
    from brewos_relay.registry.account_removal import close_account, remove_some
    from brewos_relay.registry.bulk import run_steps

    with errors_as(Failed), existing_registry(data_dir) as database:
        with database.writing() as db:
            user_id = _account(db, email).id
            close_account(db, user_id, now_ms=now_ms())
        run_steps(database, lambda db: remove_some(db, user_id, now_ms=now_ms()))
    click.echo(f"Removed {email}.", err=True)


@user.command()
@_email_argument
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the password from the first line of stdin.")
@data_dir_option
def password(email: str, from_stdin: bool, data_dir: Path | None) -> None:
    """Set the password of an account.

    Prompts for the password twice, without showing it. Login sessions stay open; `user sign-out` ends them.

    \b
    Example:
      brewos-relay user password ada@example.com
      brewos-relay user password ada@example.com --stdin < password.txt
    """
    from brewos_relay.registry.accounts import set_password_hash

    with errors_as(Failed), existing_registry(data_dir) as database:
        # Check the account before prompting.
        with database.reading() as db:
            user_id = _account(db, email).id
        from brewos_relay.auth.passwords import hash_password

        try:
            password_hash = hash_password(_read_password() if from_stdin else _ask_password())
        except ValueError as problem:
            raise click.UsageError(str(problem)) from None
        with database.writing() as db:
            set_password_hash(db, user_id, password_hash)
    click.echo(f"Set the password of {email}.", err=True)


@user.command()
@_email_argument
@click.option("--off", is_flag=True, help="Make it an ordinary account again.")
@data_dir_option
def admin(email: str, off: bool, data_dir: Path | None) -> None:
    """Make an account an administrator's, or ordinary with --off.

    \b
    Example:
      brewos-relay user admin ada@example.com
      brewos-relay user admin ada@example.com --off
    """
    from brewos_relay.registry.accounts import set_admin

    with errors_as(Failed), existing_registry(data_dir) as database, database.writing() as db:
        set_admin(db, _account(db, email).id, not off)
    click.echo(f"{email} is now {'an ordinary user' if off else 'an administrator'}.", err=True)


@user.command("sign-out")
@_email_argument
@data_dir_option
def sign_out(email: str, data_dir: Path | None) -> None:
    """End all login sessions of an account.

    The connections of its apps are closed within a second. Tokens from `brewos-relay token` have no login
    session, and stay valid until they expire.

    \b
    Example:
      brewos-relay user sign-out ada@example.com
    """
    from brewos_relay.registry.login_sessions import end_sessions

    with errors_as(Failed), existing_registry(data_dir) as database, database.writing() as db:
        ended = end_sessions(db, _account(db, email).id, now_ms=now_ms())
    click.echo(f"Ended {ended} login {'session' if ended == 1 else 'sessions'} of {email}.", err=True)


def _account(db: "Connection", email: str) -> "User":
    from brewos_relay.registry.accounts import find_user_by_email

    found = find_user_by_email(db, email)
    if found is None:
        raise Failed(f"there is no account {email}; `brewos-relay user list` shows all accounts")
    return found


def _read_password() -> str:
    """Read a password from the first line of stdin. Raises UsageError if it is not UTF-8."""
    line = sys.stdin.buffer.readline(_LINE_BYTES)
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise click.UsageError("the password on stdin is not UTF-8") from None


def _ask_password() -> str:
    if not sys.stdin.isatty():
        raise click.UsageError("stdin is not a terminal; use --stdin to read the password from it")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt="Repeat", err=True))
