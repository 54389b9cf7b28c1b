"""`brewos-relay init`: set up a relay in a folder."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.parameters import account_email, base_url, data_dir_option, port_number

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--url",
    "public_url",
    metavar="URL",
    type=base_url,
    help="Address of the relay for machines and phones (PUBLIC_URL).",
)
@click.option(
    "--email", metavar="EMAIL", type=account_email, help="E-mail address of the first administrator."
)
@click.option("--port", type=port_number, help="Port to listen on (PORT; default: that of the URL).")
@click.option(
    "--redirect-port",
    type=port_number,
    help="Port that redirects to https (BREWOS_RELAY_REDIRECT_PORT; default: 80 beside port 443).",
)
@click.option(
    "--tls-cert", type=_FILE, help="Use this certificate, not one of a local CA (BREWOS_RELAY_TLS_CERT)."
)
@click.option("--tls-key", type=_FILE, help="The key of that certificate (BREWOS_RELAY_TLS_KEY).")
@click.option("--behind-proxy", is_flag=True, help="Speak plain HTTP with a proxy that has the certificate.")
@click.option("--new-ca", is_flag=True, help="Make another local CA, which each phone must trust again.")
@click.option("--env-file", type=_FILE, default=".env", show_default=True, help="File for the settings.")
@click.option("--secret-file", type=_FILE, help="File for the secret, as a credential for systemd.")
@click.option(
    "-y", "--yes", is_flag=True, help="Ask nothing: use the defaults, and replace settings that differ."
)
@data_dir_option
def init(
    *,
    env_file: Path,
    email: str | None,
    behind_proxy: bool,
    new_ca: bool,
    secret_file: Path | None,
    yes: bool,
    **options: Any,
) -> None:
    """Set up a relay in this folder.

    Writes .env, creates the secret and the certificate, invites the first administrator, and prints the next
    steps. On a terminal, it asks for missing options. Run it again at any time: it adds missing parts, and
    never replaces a secret.

    With an https URL, the relay gets a certificate of a small local CA, which phones can trust. An http URL
    is for a try on this computer.

    \b
    Example:
      brewos-relay init
      brewos-relay init --url https://coffee.local --email ada@example.com
      brewos-relay init --url https://relay.example.com --email ada@example.com --behind-proxy
    """
    set_up(
        options,
        env_file=env_file,
        email=email,
        behind_proxy=behind_proxy,
        new_ca=new_ca,
        secret_file=secret_file,
        yes=yes,
    )


def set_up(
    options: Mapping[str, Any],
    *,
    env_file: Path = Path(".env"),
    email: str | None = None,
    behind_proxy: bool = False,
    new_ca: bool = False,
    secret_file: Path | None = None,
    yes: bool = False,
    then_serves: bool = False,
) -> None:
    """Set up a relay.

    `options` are settings from the command line. `then_serves` is true if the server starts next.
    """
    from brewos_relay.commands.run_init import Setup

    with errors_as(Failed):
        setup = Setup.of(
            {name: str(value) for name, value in options.items() if value is not None},
            env_file=env_file,
            behind_proxy=behind_proxy,
            secret_file=secret_file,
            new_ca=new_ca,
            asks=not yes and is_terminal(),
            replaces=yes,
        )
        setup.ask(email)
        setup.write()
        setup.tell(then_serves=then_serves)


def is_terminal() -> bool:
    """Whether a user can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
