"""`brewos-relay db …`: the tables of the registry, and copies of it."""

from pathlib import Path
from shlex import quote

import click

from brewos_relay.commands.failures import Failed, failing_with
from brewos_relay.commands.parameters import HelpfulGroup, data_dir_option
from brewos_relay.commands.registry_access import database_url, require_file


@click.group("db", cls=HelpfulGroup)
def database() -> None:
    """Look after the registry's tables, and make copies of it.

    On SQLite, every command and the server bring them up to date by themselves.

    \b
    Example:
      brewos-relay db status
      brewos-relay db backup /var/backups/relay.db
    """


@database.command()
@data_dir_option
def upgrade(data_dir: Path | None) -> None:
    """Bring the tables of the registry up to date, all or nothing.

    Make a copy of the database before that: `brewos-relay db backup` does for SQLite.

    \b
    Example:
      BREWOS_RELAY_DATABASE_URL=postgresql://relay@db/relay brewos-relay db upgrade
    """
    from brewos_relay.registry import migrations
    from brewos_relay.registry.database import upgrade

    with failing_with(Failed):
        added = upgrade(database_url(data_dir))
    if not added:
        click.echo(f"The tables are up to date: they have version {migrations.HEAD}.", err=True)
        return
    place = migrations.VERSIONS.index(added[0])
    before = f"version {migrations.VERSIONS[place - 1]}" if place else "none"
    click.echo(f"The tables went from {before} to version {added[-1]}.", err=True)


@database.command()
@data_dir_option
def status(data_dir: Path | None) -> None:
    """Show where the registry is, and which version its tables have.

    Ends with 1 if they have to be brought up to date. Nothing is changed.

    \b
    Example:
      brewos-relay db status
    """
    from brewos_relay.registry import migrations
    from brewos_relay.registry.database import version

    with failing_with(Failed):
        url = database_url(data_dir)
        require_file(url)
        location, found = version(url)
        migrations.check_known(found)
    click.echo(f"registry  {location}")
    click.echo(f"version   {found or 'none'}")
    if found != migrations.HEAD:
        raise Failed(
            f"the tables have to go to version {migrations.HEAD}; `brewos-relay db upgrade` brings them there"
        )


@database.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@data_dir_option
def backup(file: Path, force: bool, data_dir: Path | None) -> None:
    """Copy the registry to FILE, also while the server runs.

    The copy is the registry as it stands at one moment. It is looked over before it gets its name, and is for
    the user who makes it only: who has it has the hashes of keys and passwords, and everybody's addresses.

    \b
    Example:
      brewos-relay db backup "relay-$(date +%F).db"
    """
    from brewos_relay.registry.backup import back_up

    with failing_with(Failed):
        url = database_url(data_dir)
        source = _require_sqlite(
            url,
            "pg_dump copies it, also while the server runs:"
            f" pg_dump --format=custom --file={quote(str(file))} {{database}}",
        )
        require_file(url)
        copy = back_up(source, file, replace=force)
    click.echo(f"{file} has {_describe(copy.devices, copy.version, copy.size_bytes)}.", err=True)


@database.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_dir_option
def restore(file: Path, data_dir: Path | None) -> None:
    """Put a copy of the registry into its place.

    Stop the server first. A copy that is damaged, or comes from a newer version, is refused. What was there
    is kept beside it, under a name with the time in it.

    \b
    Example:
      brewos-relay db restore relay-2026-01-02.db
    """
    from brewos_relay.registry.backup import restore

    with failing_with(Failed):
        url = database_url(data_dir)
        target = _require_sqlite(
            url,
            "pg_restore brings a copy of pg_dump back, once every server is stopped:"
            f" pg_restore --clean --if-exists --single-transaction --dbname={{database}} {quote(str(file))}",
        )
        copy = restore(file, target)
    what = _describe(copy.devices, copy.version, copy.size_bytes)
    click.echo(f"{target.absolute()} is {file} now, with {what}.", err=True)
    if copy.kept is not None:
        click.echo(f"What was there is kept as {copy.kept.absolute()}.", err=True)


def _require_sqlite(url: str, hint: str) -> Path:
    """Give the file of the registry; Failed says what to do about one that is not simply a file.

    The hint is for PostgreSQL, with `{database}` where its URL belongs.
    """
    from brewos_relay.registry.engine import database_file, postgresql_url

    file = database_file(url)
    if file is not None:
        return file
    if (shown := postgresql_url(url)) is not None:
        raise Failed(f"the registry is in PostgreSQL: {hint.replace('{database}', quote(shown))}")
    raise Failed("the registry is not simply an SQLite file; use the tools of its database")


def _describe(devices: int, version: str, size_bytes: int) -> str:
    many = "1 device" if devices == 1 else f"{devices} devices"
    return f"{many}, tables of version {version}, {size_bytes} bytes"
