"""`brewos-relay secret` and `brewos-relay token`: what lets clients in."""

from typing import TYPE_CHECKING

import click

from brewos_relay.cli.common import (
    ROLES,
    Failed,
    device_id,
    duration_s,
    email,
    failing_with,
    settings_from,
    user_id,
)

if TYPE_CHECKING:
    from brewos_relay.core.rights import Role


@click.command()
def secret() -> None:
    """Print a fresh value for JWT_SECRET, which signs tokens.

    Whoever knows it can make tokens. To replace one, put the new one before the old one, with a comma between
    them: the first signs, all verify. Take the old one away once the last of its tokens has expired.

    \b
    Example:
      echo "JWT_SECRET=$(brewos-relay secret)" > .env
    """
    from brewos_relay.auth.secrets import generate_secret

    click.echo(generate_secret())


@click.command()
@click.option("--user", "user_id", required=True, metavar="ID", type=user_id, help="The user's id.")
@click.option("--email", required=True, type=email, help="The user's e-mail address.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="ID",
    type=device_id,
    help="A device to reach; can be repeated.",
)
@click.option("--all-devices", is_flag=True, help="Reach every device there is.")
@click.option(
    "--role",
    type=click.Choice(ROLES, case_sensitive=False),
    default="owner",
    show_default=True,
    help="What its user may do with the devices that it names.",
)
@click.option(
    "--ttl",
    "ttl_s",
    type=duration_s,
    metavar="DURATION",
    default="7d",
    show_default=True,
    help="How long it is good for.",
)
def token(
    user_id: str, email: str, devices: tuple[str, ...], all_devices: bool, role: "Role", ttl_s: int
) -> None:
    """Print a signed token (JWT) for a client, and nothing else.

    It reaches the devices that it names, and those that the registry says its user has. It is signed with
    JWT_SECRET or BREWOS_RELAY_JWT_KEY_FILES, which must be the server's. A viewer sees everything and sends
    nothing; a member sends all but what is an owner's to send.

    \b
    Example:
      brewos-relay token --user ada --email ada@example.com --device BRW-12AB34CD --ttl 12h
      brewos-relay token --user wall --email wall@example.com --device BRW-12AB34CD --role viewer
    """
    if all_devices and devices:
        raise click.UsageError("--device and --all-devices exclude each other; leave one of them out")
    from brewos_relay.server.key_ring import read_key_ring

    named = "*" if all_devices else devices
    with failing_with(Failed):
        keys = read_key_ring(settings_from())
    try:
        click.echo(keys.issue(user_id=user_id, email=email, devices=named, role=role, ttl_s=ttl_s))
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
