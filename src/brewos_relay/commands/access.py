"""`brewos-relay secret`: secrets that sign tokens."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    pass


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
