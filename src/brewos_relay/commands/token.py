"""`brewos-relay secret` and `token …`: secrets that sign tokens, and tokens for programs."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from brewos_relay.commands.failures import Failed, errors_as, print_error
from brewos_relay.commands.output import print_json, print_table
from brewos_relay.commands.parameters import (
    data_dir_option,
    device_id,
    duration_s,
    email,
    json_option,
    role_choice,
    settings_from,
    token_name,
    user_id,
)
from brewos_relay.commands.registry_access import existing_registry
from brewos_relay.texts import NAME_CHARS
from brewos_relay.vocabulary import iso_time, now_ms

if TYPE_CHECKING:
    from brewos_relay.registry.records import StoredToken
    from brewos_relay.vocabulary import Role

_ID_BYTES: Final = 8
_HAS_COMMAND: Final = "brewos_relay.has_command"


@click.command()
def secret() -> None:
    """Print a new value for JWT_SECRET, which signs tokens.

    Everyone who knows the secret can make tokens. To replace it, put the new secret before the old one,
    separated by a comma: the first signs, all verify. Remove the old secret once the last of its tokens has
    expired.

    \b
    Example:
      echo "JWT_SECRET=$(brewos-relay secret)" > .env
    """
    from brewos_relay.auth.secrets import generate_secret

    click.echo(generate_secret())


class _NewToken(click.Group):
    """A group that makes a token if no command is given, with options that only a new token needs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, and record whether they contain a command."""
        ctx.meta[_HAS_COMMAND] = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args)


class _Needed(click.Option):
    """An option that is required for a new token, but not with a command."""

    def process_value(self, ctx: click.Context, value: object) -> Any:
        """Check the value; with a command, a missing one is accepted."""
        try:
            return super().process_value(ctx, value)
        except click.MissingParameter:
            if ctx.meta[_HAS_COMMAND]:
                return None
            raise


@click.group(cls=_NewToken, invoke_without_command=True)
@click.option(
    "--user", "user_id", cls=_Needed, required=True, metavar="ID", type=user_id, help="Id of the user."
)
@click.option("--email", cls=_Needed, required=True, type=email, help="E-mail address of the user.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="ID",
    type=device_id,
    help="Device that the token gives access to (repeatable).",
)
@click.option("--all-devices", is_flag=True, help="Give access to all devices.")
@click.option(
    "--role",
    type=role_choice,
    default="owner",
    show_default=True,
    help="Highest role that the token gives for any device.",
)
@click.option(
    "--ttl",
    "ttl_s",
    type=duration_s,
    metavar="DURATION",
    default="7d",
    show_default=True,
    help="How long the token is valid.",
)
@click.option(
    "--name",
    type=token_name,
    metavar="NAME",
    help="Name for the list of tokens [default: the e-mail address].",
)
@data_dir_option
@click.pass_context
def token(
    ctx: click.Context,
    user_id: str,
    email: str,
    devices: tuple[str, ...],
    all_devices: bool,
    role: "Role",
    ttl_s: int,
    name: str | None,
    data_dir: Path | None,
) -> None:
    """Print a signed token (JWT) for a client.

    The token gives access to the devices in it, and to the devices of its user in the registry. It is signed
    with JWT_SECRET or BREWOS_RELAY_JWT_KEY_FILES, which must be the same as the server's. A viewer sees
    everything and sends nothing; a member sends all commands except those reserved for owners. The registry
    stores the id and the name of the token, but not the token.

    \b
    Example:
      brewos-relay token --user ada --email ada@example.com --device BRW-12AB34CD --ttl 12h
      brewos-relay token --user wall --email wall@example.com --device BRW-12AB34CD --role viewer --name wall
    """
    if ctx.invoked_subcommand is not None:
        return
    if all_devices and devices:
        raise click.UsageError("--device and --all-devices exclude each other; use only one of them")
    click.echo(
        _issue(
            data_dir,
            name=name or email[:NAME_CHARS],
            user_id=user_id,
            email=email,
            devices="*" if all_devices else devices,
            role=role,
            ttl_s=ttl_s,
        )
    )


def _issue(data_dir: Path | None, *, name: str | None, **options: Any) -> str:
    """Make a token and store its id. If there is no registry, warn and make a token without an id."""
    from brewos_relay.errors import RelayError
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.issued_tokens import add_token
    from brewos_relay.registry.records import StoredToken
    from brewos_relay.server.key_ring import read_key_ring

    with errors_as(Failed):
        settings = settings_from(data_dir=data_dir)
        keys = read_key_ring(settings)
    id_ = secrets.token_hex(_ID_BYTES)
    try:
        token = keys.issue(**options, token_id=id_)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    claims = keys.verify(token)
    stored = StoredToken(
        id=id_,
        name=name,
        user_id=claims.user_id,
        role=claims.role,
        devices=claims.devices,
        created_at_ms=claims.issued_at_s * 1000,
        expires_at_ms=claims.expires_at_s * 1000,
    )
    try:
        with Database.open(settings.resolved_database_url()) as database, database.writing() as db:
            add_token(db, stored)
    except (RelayError, OSError) as problem:
        print_error(f"this token has no id and cannot be revoked individually: {problem}")
        return keys.issue(**options)
    return token


@token.command("list")
@json_option
@data_dir_option
def list_(as_json: bool, data_dir: Path | None) -> None:
    """List the tokens of programs that have not expired.

    \b
    Example:
      brewos-relay token list
    """
    from brewos_relay.registry.issued_tokens import all_tokens

    with errors_as(Failed), existing_registry(data_dir) as database, database.reading() as db:
        found = all_tokens(db, now_ms=now_ms())
    if as_json:
        print_json([_as_json(each) for each in found])
    else:
        print_table(
            ["id", "name", "user", "role", "devices", "expires", "state"],
            [
                (
                    each.id,
                    each.name or "",
                    each.user_id,
                    each.role,
                    "all" if each.devices == "*" else " ".join(sorted(each.devices)),
                    iso_time(each.expires_at_ms) or "",
                    "valid" if each.revoked_at_ms is None else "revoked",
                )
                for each in found
            ],
        )


@token.command()
@click.argument("token_id", metavar="ID")
@data_dir_option
def revoke(token_id: str, data_dir: Path | None) -> None:
    """Revoke a token by its ID, as `token list` shows it.

    A running server closes its connections within a second. Other tokens of the user stay valid.

    \b
    Example:
      brewos-relay token revoke 1f0c9a52b7d3e486
    """
    from brewos_relay.registry.issued_tokens import revoke_token

    with errors_as(Failed), existing_registry(data_dir) as database, database.writing() as db:
        if not revoke_token(db, token_id, now_ms=now_ms()):
            raise Failed(
                f"there is no token {token_id} to revoke: `brewos-relay token list` shows the tokens that"
                " have not expired, and whether they are revoked"
            )
    click.echo(f"Revoked the token {token_id}.", err=True)


def _as_json(token: "StoredToken") -> dict[str, object]:
    return {
        "id": token.id,
        "name": token.name,
        "userId": token.user_id,
        "role": token.role,
        "devices": token.devices if token.devices == "*" else sorted(token.devices),
        "createdAt": iso_time(token.created_at_ms),
        "expiresAt": iso_time(token.expires_at_ms),
        "revokedAt": iso_time(token.revoked_at_ms),
    }
