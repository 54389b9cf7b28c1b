"""`brewos-relay pairing …`: the pairing window, in which unknown devices may register."""

from pathlib import Path

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.output import print_json
from brewos_relay.commands.parameters import HelpfulGroup, data_dir_option, duration_s, settings_from
from brewos_relay.commands.registry_access import existing_registry
from brewos_relay.vocabulary import iso_time, now_ms


@click.group(cls=HelpfulGroup)
def pairing() -> None:
    """Control when unknown devices may register.

    With BREWOS_RELAY_PAIRING=window, devices may register while the pairing window is open. It applies to all
    servers of a registry.

    \b
    Example:
      brewos-relay pairing open --for 10m
    """


@pairing.command("open")
@click.option(
    "--for",
    "for_s",
    type=duration_s,
    metavar="DURATION",
    default="10m",
    show_default=True,
    help="How long the window stays open, at most a day.",
)
@data_dir_option
def open_(for_s: int, data_dir: Path | None) -> None:
    """Let unknown devices register for a limited time.

    A device retries every 30 s, so it need not be restarted.

    \b
    Example:
      brewos-relay pairing open --for 10m
    """
    from brewos_relay.registry.pairing_limits import WINDOW_AT_MOST_MS, open_window

    if for_s * 1000 > WINDOW_AT_MOST_MS:
        raise click.UsageError("--for must be at most a day, as in 10m or 24h")
    with errors_as(Failed):
        mode = settings_from(data_dir=data_dir).pairing
        if mode == "closed":
            raise Failed("BREWOS_RELAY_PAIRING is closed; set it to window and restart the server")
        with existing_registry(data_dir) as database, database.writing() as db:
            until_ms = open_window(db, now_ms=now_ms(), for_ms=for_s * 1000)
    click.echo(f"Pairing is open until {iso_time(until_ms)}.", err=True)
    if mode == "open":
        click.echo("BREWOS_RELAY_PAIRING is open: pairing stays open after that time.", err=True)


@pairing.command()
@data_dir_option
def close(data_dir: Path | None) -> None:
    """Close the pairing window immediately.

    \b
    Example:
      brewos-relay pairing close
    """
    from brewos_relay.registry.pairing_limits import close_window

    with errors_as(Failed):
        mode = settings_from(data_dir=data_dir).pairing
        with existing_registry(data_dir) as database, database.writing() as db:
            close_window(db)
    if mode == "open":
        click.echo(
            "The window is closed, but BREWOS_RELAY_PAIRING is open: devices can still register.", err=True
        )
    else:
        click.echo("Pairing is closed.", err=True)


@pairing.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@data_dir_option
def status(as_json: bool, data_dir: Path | None) -> None:
    """Show whether unknown devices may register now.

    Run this where the server runs: the mode comes from BREWOS_RELAY_PAIRING of this command's environment.

    \b
    Example:
      brewos-relay pairing status
    """
    from brewos_relay.registry.pairing_limits import window_open_until

    with errors_as(Failed):
        mode = settings_from(data_dir=data_dir).pairing
        with existing_registry(data_dir) as database, database.reading() as db:
            until_ms = window_open_until(db, now_ms=now_ms())
    is_open = mode == "open" or (mode == "window" and until_ms is not None)
    if as_json:
        print_json({"mode": mode, "isOpen": is_open, "openUntil": iso_time(until_ms)})
        return
    until = f" until {iso_time(until_ms)}" if mode == "window" and until_ms is not None else ""
    click.echo(f"Pairing is {'open' if is_open else 'closed'}{until} (BREWOS_RELAY_PAIRING={mode}).")
