"""`brewos-relay db …`: upgrade, back up and restore the registry."""

from pathlib import Path
from shlex import quote

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.parameters import HelpfulGroup, data_dir_option
from brewos_relay.commands.registry_access import database_url, require_file


@click.group("db", cls=HelpfulGroup)
def database() -> None:
    """Upgrade, back up and restore the registry.

    On SQLite, the server and every command upgrade the tables automatically.

    \b
    Example:
      brewos-relay db status
      brewos-relay db backup /var/backups/relay.db
    """


@database.command()
@data_dir_option
def upgrade(data_dir: Path | None) -> None:
    """Upgrade the tables of the registry to the current version.

    All steps run in one transaction. Back up the database first: with `brewos-relay db backup` on SQLite,
    with pg_dump on PostgreSQL.

    \b
    Example:
      BREWOS_RELAY_DATABASE_URL=postgresql://relay@db/relay brewos-relay db upgrade
    """
    from brewos_relay.registry import migrations
    from brewos_relay.registry.database import upgrade

    with errors_as(Failed):
        added = upgrade(database_url(data_dir))
    if not added:
        click.echo(f"The tables are up to date, at version {migrations.HEAD}.", err=True)
        return
    place = migrations.VERSIONS.index(added[0])
    before = f"from version {migrations.VERSIONS[place - 1]} " if place else ""
    click.echo(f"Upgraded the tables {before}to version {added[-1]}.", err=True)


@database.command()
@data_dir_option
def status(data_dir: Path | None) -> None:
    """Show the location of the registry and the version of its tables.

    Exits with 1 if the tables have to be upgraded. Changes nothing.

    \b
    Example:
      brewos-relay db status
    """
    from brewos_relay.registry import migrations
    from brewos_relay.registry.database import version

    with errors_as(Failed):
        url = database_url(data_dir)
        require_file(url)
        location, found = version(url)
        migrations.check_known(found)
    click.echo(f"registry  {location}")
    click.echo(f"version   {found or 'none'}")
    if found != migrations.HEAD:
        raise Failed(
            f"the tables must be upgraded to version {migrations.HEAD}: run `brewos-relay db upgrade`"
        )


@database.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@data_dir_option
def backup(file: Path, force: bool, data_dir: Path | None) -> None:
    """Copy the registry to FILE, also while the server runs.

    The copy is consistent, and is verified before it gets its name. It contains e-mail addresses and hashes
    of keys and passwords, so only the user who makes it can read it.

    \b
    Example:
      brewos-relay db backup "relay-$(date +%F).db"
    """
    from brewos_relay.registry.backup import back_up

    with errors_as(Failed):
        url = database_url(data_dir)
        source = _require_sqlite(
            url,
            "use pg_dump, also while the server runs:"
            f" pg_dump --format=custom --file={quote(str(file))} {{database}}",
        )
        require_file(url)
        copy = back_up(source, file, replace=force)
    click.echo(f"{file} contains {_describe(copy.devices, copy.version, copy.size_bytes)}.", err=True)


@database.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_dir_option
def restore(file: Path, data_dir: Path | None) -> None:
    """Replace the registry by a backup.

    Stop the server first. A backup that is damaged or of a newer version is refused. The previous registry is
    kept beside the new one, with the time in its name.

    \b
    Example:
      brewos-relay db restore relay-2026-01-02.db
    """
    from brewos_relay.registry.backup import restore

    with errors_as(Failed):
        url = database_url(data_dir)
        target = _require_sqlite(
            url,
            "use pg_restore with a copy of pg_dump, once every server is stopped:"
            f" pg_restore --clean --if-exists --single-transaction --dbname={{database}} {quote(str(file))}",
        )
        copy = restore(file, target)
    what = _describe(copy.devices, copy.version, copy.size_bytes)
    click.echo(f"Restored {target.absolute()} from {file}: {what}.", err=True)
    if copy.kept is not None:
        click.echo(f"The previous registry is kept as {copy.kept.absolute()}.", err=True)


def _require_sqlite(url: str, hint: str) -> Path:
    """Return the file of the registry. Raises Failed if the registry is not a plain SQLite file.

    `hint` is for PostgreSQL, with `{database}` in place of its URL.
    """
    from brewos_relay.registry.engine import database_file, postgresql_url

    file = database_file(url)
    if file is not None:
        return file
    if (shown := postgresql_url(url)) is not None:
        raise Failed(f"the registry is in PostgreSQL: {hint.replace('{database}', quote(shown))}")
    raise Failed("the registry is not a plain SQLite file; use the tools of its database")


def _describe(devices: int, version: str, size_bytes: int) -> str:
    many = "1 device" if devices == 1 else f"{devices} devices"
    return f"{many}, tables of version {version}, {size_bytes} bytes"
