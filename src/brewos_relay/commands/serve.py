"""`brewos-relay serve`: run the relay."""

import signal
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from brewos_relay.commands.failures import Failed, NotStarted, errors_as
from brewos_relay.commands.parameters import data_dir_option, port_number, settings_from
from brewos_relay.interpreted import prefer_source

if TYPE_CHECKING:
    from brewos_relay.server.signals import ServerSignals

# The names that `settings` accepts; importing it would slow `--help` down.
_LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_LOG_FORMATS = ("auto", "console", "json")
_FILE = click.Path(dir_okay=False)
_SETUP_OPTIONS = ("public_url", "port", "redirect_port", "tls_cert", "tls_key", "tls_self_signed", "data_dir")


@click.command()
@click.option("--host", help="Address to listen on (BREWOS_RELAY_HOST; default: all interfaces).")
@click.option(
    "--port", type=port_number, help="Port to listen on; 0 selects a free one (PORT; default: 3001)."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Processes that serve the port together, one for each core (BREWOS_RELAY_WORKERS; default: 1).",
)
@click.option("--public-url", metavar="URL", help="Public URL of the server, used in links (PUBLIC_URL).")
@click.option("--tls-cert", type=_FILE, help="PEM file of the TLS certificate (BREWOS_RELAY_TLS_CERT).")
@click.option("--tls-key", type=_FILE, help="PEM file of its private key (BREWOS_RELAY_TLS_KEY).")
@click.option(
    "--tls-self-signed",
    is_flag=True,
    help="Make a certificate of a local CA, for a home network (BREWOS_RELAY_TLS_SELF_SIGNED).",
)
@click.option(
    "--redirect-port",
    type=port_number,
    help="Port that redirects from http to https (BREWOS_RELAY_REDIRECT_PORT).",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="CIDR",
    help="Trust X-Forwarded-* and PROXY headers from this network (repeatable;"
    " BREWOS_RELAY_TRUSTED_PROXIES).",
)
@click.option(
    "--proxy-protocol",
    is_flag=True,
    help="Expect the PROXY protocol from trusted proxies (BREWOS_RELAY_PROXY_PROTOCOL).",
)
@data_dir_option
@click.option(
    "--log-level",
    type=click.Choice(_LOG_LEVELS, case_sensitive=False),
    help="Minimum level of log lines (BREWOS_RELAY_LOG_LEVEL; default: info).",
)
@click.option(
    "--log-format",
    type=click.Choice(_LOG_FORMATS, case_sensitive=False),
    help="Text or JSON; auto: text on a terminal (BREWOS_RELAY_LOG_FORMAT; default: auto).",
)
@click.option("--worker", "descriptor", type=int, hidden=True)  # for the processes that it starts itself
def serve(
    *,
    tls_self_signed: bool,
    proxy_protocol: bool,
    trusted_proxies: tuple[str, ...],
    descriptor: int | None,
    **options: object,
) -> None:
    """Run the relay until SIGTERM or Ctrl-C.

    `brewos-relay init` sets it up first; on a terminal, this command offers to do so. The first SIGTERM or
    Ctrl-C drains the server: it closes the connections evenly over 20 s. A second one closes them as soon as
    no device can lose its key. A third one ends the process immediately. SIGHUP reloads the certificate.

    \b
    Example:
      brewos-relay serve
      brewos-relay serve --port 8080 --data-dir /var/lib/brewos-relay
    """
    given = {
        # None for options that are not given: they must not override the environment.
        "tls_self_signed": tls_self_signed or None,
        "proxy_protocol": proxy_protocol or None,
        "trusted_proxies": ",".join(trusted_proxies) or None,
        **options,
    }
    if threading.current_thread() is threading.main_thread():
        # SIGHUP never ends a server, also during the imports, before it is caught.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if descriptor is None:
        _offer_setup(given)
    from brewos_relay.server.signals import ServerSignals

    with (
        ServerSignals().caught() as signals,
        errors_as(NotStarted, hint="; choose another address with --host and --port"),
    ):
        settings = settings_from(**given)
        settings.require_jwt_secrets()
        if not settings.compiled:  # by `.env`; the package itself reads the environment
            prefer_source()
        if descriptor is not None:
            _run_worker(signals, descriptor)
            return
        from brewos_relay.settings import unknown_variables

        warnings = map(str, unknown_variables())
        if settings.workers > 1:
            from brewos_relay.server.workers import run_workers
            from brewos_relay.settings import variable_names

            variables = {
                variable_names(name)[0]: str(value) for name, value in given.items() if value is not None
            }
            failure = run_workers(settings, signals=signals, options=variables, warnings=warnings)
            if failure is not None:
                raise Failed(failure)
            return
        from brewos_relay.server.run import run_server

        run_server(settings, signals=signals, warnings=warnings)


def _offer_setup(given: Mapping[str, object]) -> None:
    """On a terminal, offer to set up a folder that has no secret yet."""
    from brewos_relay.commands.init import is_terminal, set_up

    if not is_terminal():
        return
    with errors_as(NotStarted):
        settings = settings_from(**given)
    if settings.jwt_secret or settings.jwt_key_files:
        return
    click.echo("This folder has no relay yet: JWT_SECRET is not set.", err=True)
    if click.confirm("Set one up now, as `brewos-relay init` does?", default=True, err=True):
        set_up({name: given[name] for name in _SETUP_OPTIONS}, then_serves=True)
        click.echo()


def _run_worker(signals: "ServerSignals", descriptor: int) -> None:
    """Run one of several workers, or the template that they are forked from, for the parent at a socket."""
    from brewos_relay.server.worker_template import become_worker

    if (channel := become_worker(descriptor)) is None:
        return
    from brewos_relay.server.run import run_server
    from brewos_relay.server.worker import Worker

    settings = settings_from()
    settings.require_jwt_secrets()
    run_server(settings, signals=signals, worker=Worker.from_descriptor(channel, settings))
