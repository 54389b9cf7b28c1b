"""Transfer of a registry to another database: an export to a file, and the import of that file.

An import commits its rows in batches, and notes in the registry how far it is. Until it is complete, the
version of the tables is `migrations.IMPORTING`, so that no server or command uses a part of a registry. The
same import continues after the last batch.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    func,
    insert,
    select,
    text,
    update,
)

from brewos_relay.errors import RegistryError
from brewos_relay.registry import migrations
from brewos_relay.registry.database import Database
from brewos_relay.registry.export_file import (
    TABLES,
    Export,
    Progress,
    TableSum,
    check_export,
    row_line,
    rows_in,
    write_export,
)
from brewos_relay.registry.files import give_name, new_file, require_free, sync

ROWS_AT_ONCE: Final = 1000
BYTES_AT_ONCE: Final = 1024 * 1024
"""The largest batch, in rows and in bytes of their lines."""

_EMPTY_FIRST: Final = "import into an empty database: another SQLite file, or a new PostgreSQL database"

_ANOTHER: Final = "another import into this registry runs at the same time"

# It exists only during an import. `rows` counts the imported ones.
_import = Table(
    "registry_import",
    MetaData(),
    Column("file_sha256", String(64), primary_key=True),
    Column("rows", BigInteger, nullable=False),
)
_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def export_registry(
    database: Database, target: Path, *, now_ms: int, replace: bool = False, progress: Progress
) -> Export:
    """Write all rows of a registry as of one moment to a new file, also while servers run.

    Only this user can read it. It gets its name when it is complete. Raises RegistryError and OSError; also
    if `target` exists, unless `replace` is true.
    """
    require_free(target, replace=replace)
    with new_file(target.parent) as path:
        with database.snapshot() as db:
            counts = {name: _count(db, table) for name, table in TABLES.items()}
            export = write_export(
                path,
                {name: (counts[name], _rows_of(db, table)) for name, table in TABLES.items()},
                compress=target.name.endswith(".gz"),
                exported_at_ms=now_ms,
                last_ids=_last_ids(db),
                progress=progress,
            )
        sync(path)
        give_name(path, target, replace=replace)
    return export


def import_registry(database: Database, source: Path, *, progress: Progress) -> Export:
    """Import a file into an empty registry, or continue an interrupted import of the same file.

    The file is checked first, and the imported rows are compared with its checksums in the end. No server may
    use the registry meanwhile. `database` was opened with `unfinished`. Raises RegistryError and OSError.
    """
    export = check_export(source, progress=progress)
    done = _begin(database, export)
    for batch in _batches(source, skip=done):
        try:
            with database.writing() as db:
                _advance(db, export, done, len(batch))
                db.execute(insert(batch[0][0]), [row for _, row in batch])
        except RegistryError as problem:
            rows = f"rows {done + 1} to {done + len(batch)}, of the table {batch[0][0].name}"
            raise RegistryError(
                f"{source}, {rows}: {problem}; run the same command again to continue"
            ) from None
        done += len(batch)
        progress("imported", done, export.rows)
    _verify(database, export, progress=progress)
    with database.writing() as db:
        _require_importing(db)
        for name, last_id in export.last_ids.items():
            _continue_ids(db, TABLES[name], last_id)
        _import.drop(db)
        db.execute(update(_version).values(version_num=migrations.HEAD))
    return export


def _begin(database: Database, export: Export) -> int:
    """Mark a registry as incomplete. Returns how many rows an earlier run has imported."""
    with database.writing() as db:
        marked = update(_version).where(_version.c.version_num == migrations.HEAD)
        if db.execute(marked.values(version_num=migrations.IMPORTING)).rowcount == 0:
            return _continue_import(db, export)
        for name, table in TABLES.items():
            if count := _count(db, table):
                rows = "1 row" if count == 1 else f"{count} rows"
                raise RegistryError(
                    f"the registry {database.location} is not empty, its table {name} has {rows};"
                    f" {_EMPTY_FIRST}"
                )
        _import.create(db)
        db.execute(insert(_import).values(file_sha256=export.sha256, rows=0))
        return 0


def _continue_import(db: Connection, export: Export) -> int:
    if migrations.version_of(db) != migrations.IMPORTING:
        raise RegistryError(
            f"the registry changed its version meanwhile; {_EMPTY_FIRST}"
        )  # pragma: no cover - another version's upgrade at this moment
    sha256, done = db.execute(select(_import)).one()
    if sha256 != export.sha256:
        raise RegistryError(
            f"the registry has a part of another file, with the checksum {sha256[:12]}…; continue with that"
            f" file, or {_EMPTY_FIRST}"
        )
    return int(done)


def _advance(db: Connection, export: Export, done: int, count: int) -> None:
    _require_importing(db)
    of_this = (_import.c.file_sha256 == export.sha256) & (_import.c.rows == done)
    if db.execute(update(_import).where(of_this).values(rows=done + count)).rowcount != 1:
        raise RegistryError(_ANOTHER)


def _require_importing(db: Connection) -> None:
    if db.execute(select(_version.c.version_num)).scalar_one() != migrations.IMPORTING:
        raise RegistryError(_ANOTHER)


def _verify(database: Database, export: Export, *, progress: Progress) -> None:
    """Compare the rows of a registry with the checksums of a file."""
    done = 0
    with database.snapshot() as db:
        for name, table in TABLES.items():
            found = TableSum()
            for row in _rows_of(db, table):
                found.add(row_line(row))
                done += 1
                progress("verified", done, export.rows)
            if (found.rows, found.sha256) != (export.counts[name], export.checksums[name]):
                raise RegistryError(
                    f"the table {name} differs from the file after the import: it has {found.rows} of"
                    f" {export.counts[name]} rows, or others; stop all servers and {_EMPTY_FIRST}"
                )


def _batches(source: Path, *, skip: int) -> Iterator[list[tuple[Table, dict[str, Any]]]]:
    """Read the rows of a file in batches of one table each."""
    batch: list[tuple[Table, dict[str, Any]]] = []
    size_bytes = 0
    for table, row_bytes, row in rows_in(source, skip=skip):
        is_full = len(batch) >= ROWS_AT_ONCE or size_bytes + row_bytes > BYTES_AT_ONCE
        if batch and (is_full or table is not batch[0][0]):
            yield batch
            batch, size_bytes = [], 0
        batch.append((table, row))
        size_bytes += row_bytes
    if batch:
        yield batch


def _count(db: Connection, table: Table) -> int:
    return db.execute(select(func.count()).select_from(table)).scalar_one()


def _rows_of(db: Connection, table: Table) -> Iterator[Sequence[Any]]:
    """Read the rows of a table, in the same order on every database."""
    result = db.execute(_sorted(table, db.dialect.name), execution_options={"yield_per": ROWS_AT_ONCE})
    yield from result


def _sorted(table: Table, dialect: str) -> Select[Any]:
    keys = [
        # SQLite compares bytes; PostgreSQL follows the language of the database unless it is told.
        column.collate("C") if dialect == "postgresql" and isinstance(column.type, String) else column
        for column in table.primary_key
    ]
    return select(table).order_by(*keys)


# The ids of numbered rows continue after the last one, even if that row was deleted: apps page by them.


def _last_ids(db: Connection) -> dict[str, int]:
    if db.dialect.name == "postgresql":
        query = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM "
        return {
            table.name: db.execute(text(query + _sequence(db, table))).scalar_one() for table in _numbered()
        }
    given = {name: int(last) for name, last in db.execute(text("SELECT name, seq FROM sqlite_sequence"))}
    return {table.name: given.get(table.name, 0) for table in _numbered()}


def _continue_ids(db: Connection, table: Table, last_id: int) -> None:
    if last_id == 0:
        return
    if db.dialect.name == "postgresql":
        db.execute(select(func.setval(_sequence(db, table), last_id)))
        return
    one = {"name": table.name, "seq": last_id}
    db.execute(text("DELETE FROM sqlite_sequence WHERE name = :name"), one)
    db.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :seq)"), one)


def _numbered() -> list[Table]:
    return [
        table
        for table in TABLES.values()
        if isinstance(table.autoincrement_column, Column)
        and isinstance(table.autoincrement_column.type, (Integer, BigInteger))
    ]


def _sequence(db: Connection, table: Table) -> str:
    column = table.autoincrement_column
    assert column is not None
    return str(db.execute(select(func.pg_get_serial_sequence(table.name, column.name))).scalar_one())
