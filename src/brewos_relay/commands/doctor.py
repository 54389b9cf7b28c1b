"""`brewos-relay doctor`: checks of a server, with advice for each problem."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from brewos_relay.commands.failures import EXIT_FAILED, Failed, errors_as
from brewos_relay.commands.output import print_json, print_table
from brewos_relay.commands.parameters import data_dir_option

if TYPE_CHECKING:
    from brewos_relay.doctor import Finding

_DOTENV = Path(".env")


@click.command()
@click.option("--url", help="Public URL of the server (PUBLIC_URL; default: the port on this computer).")
@click.option("--clock", metavar="URL", help="HTTPS server to compare the clock with.")
@click.option(
    "--settings", "show_settings", is_flag=True, help="Show every setting, and where its value comes from."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@data_dir_option
@click.pass_context
def doctor(
    ctx: click.Context,
    url: str | None,
    clock: str | None,
    show_settings: bool,
    as_json: bool,
    data_dir: Path | None,
) -> NoReturn:
    """Check a server, and send a message through it.

    Run this where the server runs, with the server's settings. The last check registers a temporary device,
    which sends a message to an app and receives one. Exits with 1 if a check has failed. Secrets are not
    shown.

    \b
    Example:
      brewos-relay doctor --url https://relay.example.com
    """
    from brewos_relay.doctor.settings_checks import check_settings, list_settings

    overrides = {"data_dir": data_dir}
    settings, found = check_settings(os.environ, _DOTENV, **overrides)
    shown = []
    if show_settings:
        with errors_as(Failed):
            shown = list_settings(os.environ, _DOTENV, **overrides)
    if settings is not None:
        from brewos_relay.doctor import system_checks as checks
        from brewos_relay.doctor.canary import send_canary
        from brewos_relay.doctor.cluster_checks import check_bus
        from brewos_relay.server.own_client import local_url, tls_context

        where = url or settings.public_url or local_url(settings)
        found += checks.check_database(settings)
        if found[-1].state == "ok":
            found += checks.check_accounts(settings)
        found += check_bus(settings)
        found += checks.check_disk(settings)
        found += checks.check_certificate(settings)
        found += checks.check_port(settings)
        found += checks.check_open_files()
        found += checks.check_clock_sync() if clock is None else checks.check_clock(clock)
        trust = tls_context(settings, where)
        found += checks.check_served_certificate(where, trust)
        found += checks.check_degraded(where, trust)
        is_ready = next(finding for finding in found if finding.name == "database").state == "ok"
        if is_ready and all(finding.state != "failed" for finding in found):
            found += send_canary(settings, where, trust)
    if as_json:
        content: dict[str, object] = {"findings": [asdict(finding) for finding in found]}
        if show_settings:
            content["settings"] = [asdict(each) for each in shown]
        print_json(content)
    else:
        if shown:
            print_table(
                ("SETTING", "VALUE", "FROM"), [(each.variable, each.value, each.source) for each in shown]
            )
            click.echo()
        _print(found)
    ctx.exit(EXIT_FAILED if any(finding.state == "failed" for finding in found) else 0)


def _print(found: "list[Finding]") -> None:
    width = max(len(finding.name) for finding in found)
    for finding in found:
        click.echo(f"{finding.state:<8} {finding.name.ljust(width)}  {finding.text}")
        if finding.advice:
            click.echo(f"{'':<8} {'':<{width}}  → {finding.advice}")
