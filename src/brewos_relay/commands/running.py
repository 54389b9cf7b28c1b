"""`brewos-relay serve`, `demo`, `tail` and `send`: everything that talks on the network."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click

from brewos_relay.commands.common import (
    Failed,
    NotStarted,
    data_dir_option,
    device_id,
    failing_with,
    settings_from,
    variable,
)
from brewos_relay.errors import SettingsError

# The names that `settings` knows, without importing it for `--help`.
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_LOG_FORMATS = ("auto", "console", "json")
_PORT = click.IntRange(0, 65535)
_FILE = click.Path(dir_okay=False)

_URL = "http://127.0.0.1:3001"

# Not click's `envvar`: it knows no `.env`.
_url_option = click.option("--url", help=f"The relay (BREWOS_RELAY_URL; default: {_URL}).")
_token_option = click.option(
    "--token", help="What lets you in, as `brewos-relay token` makes it (BREWOS_RELAY_TOKEN)."
)


@click.command()
@click.option("--host", help="Address to listen on (BREWOS_RELAY_HOST; default: all interfaces).")
@click.option("--port", type=_PORT, help="Port to listen on; 0 takes a free one (PORT; default: 3001).")
@click.option("--public-url", metavar="URL", help="The address that links lead to (PUBLIC_URL).")
@click.option("--tls-cert", type=_FILE, help="PEM file of a certificate (BREWOS_RELAY_TLS_CERT).")
@click.option("--tls-key", type=_FILE, help="PEM file of its private key (BREWOS_RELAY_TLS_KEY).")
@click.option(
    "--tls-self-signed",
    is_flag=True,
    help="Make a certificate for a home network, and keep it (BREWOS_RELAY_TLS_SELF_SIGNED).",
)
@click.option(
    "--redirect-port",
    type=_PORT,
    help="Port that leads from http to https (BREWOS_RELAY_REDIRECT_PORT).",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="CIDR",
    help="Who may say where a connection comes from; can be repeated (BREWOS_RELAY_TRUSTED_PROXIES).",
)
@click.option(
    "--proxy-protocol",
    is_flag=True,
    help="Such a proxy says it with the PROXY protocol (BREWOS_RELAY_PROXY_PROTOCOL).",
)
@data_dir_option
@click.option(
    "--log-level",
    type=click.Choice(_LOG_LEVELS, case_sensitive=False),
    help="How much to log (BREWOS_RELAY_LOG_LEVEL; default: info).",
)
@click.option(
    "--log-format",
    type=click.Choice(_LOG_FORMATS, case_sensitive=False),
    help="Lines to read, or JSON; auto: lines on a terminal (BREWOS_RELAY_LOG_FORMAT; default: auto).",
)
def serve(
    *, tls_self_signed: bool, proxy_protocol: bool, trusted_proxies: tuple[str, ...], **options: object
) -> None:
    """Run the relay until SIGTERM or Ctrl-C.

    JWT_SECRET must be set; `brewos-relay secret` makes a value for it. The first SIGTERM or Ctrl-C closes
    every connection gently, over 20 s; a second one as soon as no machine can lose its key; a third ends the
    process at once. SIGHUP reloads the certificate.

    \b
    Example:
      echo "JWT_SECRET=$(brewos-relay secret)" > .env
      brewos-relay serve --port 8080 --data-dir /var/lib/brewos-relay
      brewos-relay serve --port 443 --redirect-port 80 --tls-self-signed
    """
    if threading.current_thread() is threading.main_thread():
        # Until it is caught: the imports take a while, and SIGHUP never ends a server.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from brewos_relay.server.signals import ServerSignals

    with (
        ServerSignals().caught() as signals,
        failing_with(NotStarted, hint="; choose another address with --host and --port"),
    ):
        settings = settings_from(
            # What is not given must not go before what the environment says.
            tls_self_signed=tls_self_signed or None,
            proxy_protocol=proxy_protocol or None,
            trusted_proxies=",".join(trusted_proxies) or None,
            **options,
        )
        settings.require_jwt_secrets()
        from brewos_relay.server.run import run_server
        from brewos_relay.settings import unknown_variables

        run_server(settings, signals=signals, warnings=map(str, unknown_variables()))


@click.command()
@click.option("--port", type=_PORT, help="Port to listen on; a free one if this is left out.")
def demo(port: int | None) -> None:
    """Show a relay, a simulated machine and an app at work.

    The app prints what arrives. Nothing has to be set up, and nothing is left behind. Ctrl-C ends it.

    \b
    Example:
      brewos-relay demo
    """
    with failing_with(NotStarted, hint="; choose another port with --port"):
        from brewos_relay.commands.run_demo import run_demo

        run_demo(port)


@click.command()
@click.argument("device_id", metavar="DEVICE", type=device_id)
@_url_option
@_token_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print each message as one line of JSON, also what came as MessagePack.",
)
@click.pass_context
def tail(ctx: click.Context, device_id: str, url: str | None, token: str | None, as_json: bool) -> NoReturn:
    """Print what a machine says, a line for each change, until Ctrl-C.

    It is asked for its state first, as apps do. A connection that is lost is made anew, which stderr tells.

    \b
    Example:
      brewos-relay tail BRW-12AB34CD --token "$(brewos-relay token --user ada --email a@b.c --all-devices)"
    """
    with _reaching():
        where = {"url": _find_url(url), "token": _find_token(token)}
        from brewos_relay.commands.run_client import run_tail

        code = run_tail(**where, device_id=device_id, as_json=as_json)
    ctx.exit(code)


@click.command()
@click.argument("device_id", metavar="DEVICE", type=device_id)
@click.argument("command", metavar="COMMAND")
@click.argument("fields", metavar="[KEY=VALUE]...", nargs=-1)
@_url_option
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
    """Send a command to a machine, and say what became of it.

    It may have fields. A value that is JSON is sent as such, any other as text. The exit code is 0 only if
    the command was delivered. A harmless command waits up to 10 s for a machine that is offline.

    \b
    Example:
      brewos-relay send BRW-12AB34CD set_temp boiler=brew temp=93.5
    """
    with _reaching():
        where = {"url": _find_url(url), "token": _find_token(token)}
        from brewos_relay.commands.run_client import run_send

        code = run_send(**where, device_id=device_id, command=command, fields=fields)
    ctx.exit(code)


@contextmanager
def _reaching() -> Iterator[None]:
    """Turn what a client of a relay may run into into one line and an exit code."""
    with failing_with(Failed):
        try:
            yield
        except SettingsError as problem:
            raise click.UsageError(str(problem)) from None


def _find_url(given: str | None) -> str:
    return given or variable("BREWOS_RELAY_URL") or _URL


def _find_token(given: str | None) -> str:
    found = variable("BREWOS_RELAY_TOKEN") if given is None else given
    if not found:
        raise click.UsageError(
            "no token; give one with --token or BREWOS_RELAY_TOKEN; `brewos-relay token` makes one"
        )
    return found
