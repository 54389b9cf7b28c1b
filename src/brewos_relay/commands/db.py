"""`brewos-relay db …`: upgrade, back up, restore and move the registry."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.output import ProgressLine
from brewos_relay.commands.parameters import HelpfulGroup, data_dir_option
from brewos_relay.commands.registry_access import database_url, existing_registry, require_file
from brewos_relay.vocabulary import now_ms


@click.group("db", cls=HelpfulGroup)
def database() -> None:
    """Upgrade, back up, restore and move the registry.

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


@database.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@data_dir_option
def export_rows(file: Path, force: bool, data_dir: Path | None) -> None:
    """Write all data of the registry to FILE, to move it elsewhere.

    FILE is the same for SQLite and PostgreSQL; `brewos-relay db import` reads it. It is one consistent state,
    also while the server runs, but without later changes: stop the server before you move. FILE is
    compressed if its name ends with .gz. It contains e-mail addresses and hashes of keys and passwords, so
    only the user who makes it can read it.

    \b
    Example:
      brewos-relay db export relay.jsonl.gz
    """
    from brewos_relay.registry.transfer import export_registry

    line = ProgressLine()
    with errors_as(Failed), existing_registry(data_dir) as registry:
        try:
            done = export_registry(registry, file, now_ms=now_ms(), replace=force, progress=line.show)
        finally:
            line.clear()
    click.echo(f"{file} contains {_describe_rows(done.counts)}.", err=True)


@database.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@data_dir_option
def import_rows(file: Path, data_dir: Path | None) -> None:
    """Read a FILE of `brewos-relay db export` into an empty registry.

    BREWOS_RELAY_DATABASE_URL or --data-dir names the new registry. An SQLite file is created; for PostgreSQL,
    run `brewos-relay db upgrade` before. Start the server afterwards.

    A damaged file, or one of another version, is refused and changes nothing. In the end, the imported rows
    are compared with the file. Ctrl-C or a failure interrupts the import: the same command continues it, and
    the registry cannot be used before.

    \b
    Example:
      export BREWOS_RELAY_DATABASE_URL=postgresql://relay@db/relay
      brewos-relay db upgrade
      brewos-relay db import relay.jsonl.gz
    """
    from brewos_relay.registry.database import Database
    from brewos_relay.registry.transfer import import_registry

    line = ProgressLine()
    with errors_as(Failed), Database.open(database_url(data_dir), unfinished=True) as registry:
        try:
            done = import_registry(registry, file, progress=line.show)
        except KeyboardInterrupt:
            line.clear()
            # Click ends the line.
            click.echo("Interrupted. Run the same command again to continue.", err=True, nl=False)
            raise
        finally:
            line.clear()
        location = registry.location
    click.echo(f"Imported {_describe_rows(done.counts)} into {location}.", err=True)


def _describe_rows(counts: Mapping[str, int]) -> str:
    def many(count: int, one: str) -> str:
        return f"{count} {one}" if count == 1 else f"{count} {one}s"

    rows = many(sum(counts.values()), "row")
    return f"{many(counts['devices'], 'device')} and {many(counts['users'], 'account')}, {rows} in all"


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
