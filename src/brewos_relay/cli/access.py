"""`brewos-relay secret` and `brewos-relay token`: what lets clients in."""

import click

from brewos_relay.cli.common import Failed, device_id, duration_s, email, failing_with, settings_from, user_id


@click.command()
def secret() -> None:
    """Print a fresh value for JWT_SECRET, which signs tokens.

    Whoever knows it can make tokens; changing it makes all earlier ones worthless.

    \b
    Example:
      echo "JWT_SECRET=$(brewos-relay secret)" > .env
    """
    from brewos_relay.auth.tokens import generate_secret

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
    "--ttl",
    "ttl_s",
    type=duration_s,
    metavar="DURATION",
    default="7d",
    show_default=True,
    help="How long it is good for.",
)
def token(user_id: str, email: str, devices: tuple[str, ...], all_devices: bool, ttl_s: int) -> None:
    """Print a signed token (JWT) for a client, and nothing else.

    It reaches the devices that it names, and those that the registry says its user has. It is signed with
    JWT_SECRET, which must be the server's.

    \b
    Example:
      brewos-relay token --user ada --email ada@example.com --device BRW-12AB34CD --ttl 12h
    """
    if all_devices and devices:
        raise click.UsageError("--device and --all-devices exclude each other; leave one of them out")
    from brewos_relay.auth.tokens import TokenSigner

    with failing_with(Failed):
        signer = TokenSigner(settings_from().require_jwt_secret())
    click.echo(
        signer.issue(user_id=user_id, email=email, devices="*" if all_devices else devices, ttl_s=ttl_s)
    )
