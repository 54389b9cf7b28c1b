"""`brewos-relay tail` and `send`: an app on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.parameters import device_id, find_server, url_option, variable
from brewos_relay.errors import SettingsError

_token_option = click.option(
    "--token", help="Access token, as `brewos-relay token` prints it (BREWOS_RELAY_TOKEN)."
)


@click.command()
@click.argument("device_id", metavar="DEVICE", type=device_id)
@url_option
@_token_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print each message as one line of JSON; MessagePack is converted.",
)
@click.pass_context
def tail(ctx: click.Context, device_id: str, url: str | None, token: str | None, as_json: bool) -> NoReturn:
    """Print the messages of a device, one line each, until Ctrl-C.

    Requests the state of the device first, as apps do. Reconnects after a loss, and reports that on stderr.

    \b
    Example:
      brewos-relay tail BRW-12AB34CD --token "$(brewos-relay token --user ada --email a@b.c --all-devices)"
    """
    with _client_errors():
        token = _find_token(token)
        url, context = find_server(url)
        from brewos_relay.commands.run_client import run_tail

        code = run_tail(url=url, token=token, device_id=device_id, as_json=as_json, ssl_context=context)
    ctx.exit(code)


@click.command()
@click.argument("device_id", metavar="DEVICE", type=device_id)
@click.argument("command", metavar="COMMAND")
@click.argument("fields", metavar="[KEY=VALUE]...", nargs=-1)
@url_option
@_token_option
@click.pass_context
def send(
    ctx: click.Context,
    device_id: str,
    command: str,
    fields: tuple[str, ...],
    url: str | None,
    token: str | None,
) -> NoReturn:
    """Send a command to a device, and report the outcome.

    A VALUE that is valid JSON is sent as JSON, any other as text. The exit code is 0 only if the command was
    delivered. If the device is offline, a harmless command waits for it, at most 10 s.

    \b
    Example:
      brewos-relay send BRW-12AB34CD set_temp boiler=brew temp=93.5
    """
    with _client_errors():
        token = _find_token(token)
        url, context = find_server(url)
        from brewos_relay.commands.run_client import run_send

        code = run_send(
            url=url, token=token, device_id=device_id, command=command, fields=fields, ssl_context=context
        )
    ctx.exit(code)


@contextmanager
def _client_errors() -> Iterator[None]:
    """Turn the errors of a client into one line on stderr and an exit code."""
    with errors_as(Failed):
        try:
            yield
        except SettingsError as problem:
            raise click.UsageError(str(problem)) from None


def _find_token(given: str | None) -> str:
    found = variable("BREWOS_RELAY_TOKEN") if given is None else given
    if not found:
        raise click.UsageError(
            "no token: pass one with --token or BREWOS_RELAY_TOKEN; `brewos-relay token` makes one"
        )
    return found
