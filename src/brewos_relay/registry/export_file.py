"""Export file: the rows of a registry as lines of JSON, the same for every kind of database.

    {"format":"brewos-relay registry","version":1,"schema":"0011","exportedAtMs":…,"rows":3,"lastIds":{…}}
    {"table":"devices","columns":["id","key_hash",…],"rows":2}
    ["BRW-12AB34CD","q83vEjRW…",…]
    ["BRW-12AB34CE","mN5G7w4K…",…]
    {"table":"users","columns":["id",…],"rows":1}
    ["5f0c…",…]
    {"tables":[{"table":"devices","rows":2,"sha256":"…"},…],"rows":3,"sha256":"…"}

The rows of a table are sorted by its primary key. Binary columns are in base64. The checksum of a table is
that of all its rows' lines, with line breaks. The last checksum is that of all lines before. A file whose
name ends with `.gz` is compressed.
"""

import gzip
import hashlib
import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, TypeGuard

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, Table

from brewos_relay.errors import RegistryError
from brewos_relay.registry import migrations
from brewos_relay.registry.schema import changes, metadata, registry_identity

FORMAT: Final = "brewos-relay registry"
FORMAT_VERSION: Final = 1

TABLES: Final[Mapping[str, Table]] = {
    table.name: table for table in metadata.sorted_tables if table not in (changes, registry_identity)
}
"""The exported tables, each after the tables that it refers to.

Not the change feed: it tells servers that run now what to apply, and a server that starts reads everything.
Not the identity: instances that still use the old database must be told apart from those on the new one.
"""

LINE_BYTES_AT_MOST: Final = 8 * 1024 * 1024
_LEVEL: Final = 6
_INTEGERS: Final = 2**63

Progress = Callable[[str, int, int], None]
"""Takes what is being done, the number of rows so far, and the number of all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The content of a checked file: its number of rows, all and by table, and its checksums."""

    rows: int
    counts: Mapping[str, int]
    checksums: Mapping[str, str]
    last_ids: Mapping[str, int]
    """The last ids that tables with numbered rows have given."""
    sha256: str


@dataclass(slots=True)
class TableSum:
    """The number and the checksum of the rows of a table."""

    rows: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def add(self, line: bytes) -> None:
        """Count a row."""
        self.rows += 1
        self._digest.update(line)

    @property
    def sha256(self) -> str:
        """The checksum of the rows so far."""
        return str(self._digest.hexdigest())


def row_line(row: Sequence[Any]) -> bytes:
    """Write a row as a line."""
    return _line([b64encode(cell).decode() if isinstance(cell, bytes) else cell for cell in row])


def write_export(
    path: Path,
    tables: Mapping[str, tuple[int, Iterator[Sequence[Any]]]],
    *,
    compress: bool,
    exported_at_ms: int,
    last_ids: Mapping[str, int],
    progress: Progress,
) -> Export:
    """Write a file. `tables` gives each table the number of its rows, and the rows themselves."""
    all_rows, done, whole = sum(count for count, _ in tables.values()), 0, hashlib.sha256()
    sums: dict[str, TableSum] = {}
    with path.open("wb") as raw, _compressed(raw, compress=compress) as file:

        def write(line: bytes) -> None:
            whole.update(line)
            file.write(line)

        head = {"format": FORMAT, "version": FORMAT_VERSION, "schema": migrations.HEAD}
        write(_line({**head, "exportedAtMs": exported_at_ms, "rows": all_rows, "lastIds": dict(last_ids)}))
        for name, (count, rows) in tables.items():
            write(_line({"table": name, "columns": _columns_of(TABLES[name]), "rows": count}))
            sums[name] = TableSum()
            for row in rows:
                sums[name].add(line := row_line(row))
                write(line)
                done += 1
                progress("exported", done, all_rows)
        export = Export(
            rows=done,
            counts={name: each.rows for name, each in sums.items()},
            checksums={name: each.sha256 for name, each in sums.items()},
            last_ids=last_ids,
            sha256=whole.hexdigest(),
        )
        file.write(_end_line(export))
    return export


def check_export(path: Path, *, progress: Progress) -> Export:
    """Read and check a whole file. Raises RegistryError if it is damaged or of another version."""
    with _reading(path) as reader:
        head = reader.head()
        sums: dict[str, TableSum] = {}
        done, all_rows = 0, head["rows"]
        while len(sums) < len(TABLES):
            table, count = reader.table(sums)
            each = sums[table.name] = TableSum()
            for _ in range(count):
                line = reader.line()
                reader.values(table, line)
                each.add(line)
                done += 1
                progress("checked", done, all_rows)
        export = Export(
            rows=done,
            counts={name: each.rows for name, each in sums.items()},
            checksums={name: each.sha256 for name, each in sums.items()},
            last_ids=head["lastIds"],
            sha256=reader.sha256,
        )
        if reader.line() != _end_line(export) or done != all_rows:
            raise reader.damaged("its checksums differ")
        if reader.has_more():
            raise reader.damaged("something follows its end")
        return export


def rows_in(path: Path, *, skip: int) -> Iterator[tuple[Table, int, dict[str, Any]]]:
    """Read the rows of a checked file, without the first ones: each with its table, and its size in bytes."""
    with _reading(path) as reader:
        reader.head()
        seen: dict[str, None] = {}
        while len(seen) < len(TABLES):
            table, count = reader.table(seen)
            seen[table.name] = None
            for _ in range(count):
                line = reader.line()
                if skip:
                    skip -= 1
                else:
                    yield table, len(line), reader.values(table, line)


class _Reader:
    """Reads the lines of a file, and counts them for its errors."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._number = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The checksum of the lines so far."""
        return self._digest.hexdigest()

    def line(self) -> bytes:
        """Read a line, with its line break."""
        line = self._file.readline(LINE_BYTES_AT_MOST)
        self._number += 1
        if not line.endswith(b"\n"):
            raise self.damaged(
                "the line is too long" if len(line) == LINE_BYTES_AT_MOST else "its end is missing"
            )
        self._digest.update(line)
        return line

    def has_more(self) -> bool:
        """Tell whether anything is left."""
        return bool(self._file.read(1))

    def damaged(self, reason: str) -> RegistryError:
        """Return the error for a file that cannot be used."""
        return RegistryError(
            f"{self._path} is damaged in line {self._number}: {reason}; copy it again, or make another export"
        )

    def head(self) -> dict[str, Any]:
        """Read the first line, and check the versions."""
        head = self._object()
        if head.get("format") != FORMAT:
            raise RegistryError(f"{self._path} is not a file of `brewos-relay db export`")
        version, schema = head.get("version"), head.get("schema")
        if version != FORMAT_VERSION or schema not in migrations.VERSIONS:
            raise RegistryError(
                f"{self._path} is from a newer brewos-relay, with tables of version {schema}, and this one"
                f" supports up to {migrations.HEAD}; install a version that is at least as new"
            )
        if schema != migrations.HEAD:
            raise RegistryError(
                f"{self._path} has tables of version {schema}, and this brewos-relay needs {migrations.HEAD};"
                " run `brewos-relay db upgrade` on the registry that it came from, and export it again"
            )
        if not (_is_count(head.get("rows")) and isinstance(ids := head.get("lastIds"), dict)):
            raise self.damaged("the head is incomplete")
        if not all(name in TABLES and _is_count(last) for name, last in ids.items()):
            raise self.damaged("the last ids are wrong")
        return head

    def table(self, seen: Mapping[str, object]) -> tuple[Table, int]:
        """Read the line that begins a table: one that has not been seen."""
        begin = self._object()
        table, count = TABLES.get(str(begin.get("table"))), begin.get("rows")
        if table is None or table.name in seen or begin.get("columns") != _columns_of(table):
            raise self.damaged("it does not begin the expected table")
        if not _is_count(count):
            raise self.damaged("the number of rows is wrong")
        return table, count

    def values(self, table: Table, line: bytes) -> dict[str, Any]:
        """Return the values of a row by column."""
        cells = self._parse(line)
        if not isinstance(cells, list) or len(cells) != len(table.columns):
            raise self.damaged(f"it is not a row of the table {table.name}")
        try:
            return {
                column.name: _value(column, cell) for column, cell in zip(table.columns, cells, strict=True)
            }
        except ValueError as problem:
            raise self.damaged(f"it is not a row of the table {table.name}: {problem}") from None

    def _object(self) -> dict[str, Any]:
        found = self._parse(self.line())
        if not isinstance(found, dict):
            raise self.damaged("it is not a JSON object")
        return found

    def _parse(self, line: bytes) -> object:
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise self.damaged("it is not JSON") from None


@contextmanager
def _reading(path: Path) -> Iterator[_Reader]:
    """Open a file, compressed or not."""
    with path.open("rb") as raw:
        is_compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.GzipFile(fileobj=raw) if is_compressed else raw as file:
            reader = _Reader(path, file)  # type: ignore[arg-type]
            try:
                yield reader
            except (EOFError, zlib.error, gzip.BadGzipFile):
                raise reader.damaged("it cannot be decompressed") from None


@contextmanager
def _compressed(raw: IO[bytes], *, compress: bool) -> Iterator[IO[bytes]]:
    if not compress:
        yield raw
        return
    with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=_LEVEL, mtime=0) as file:
        yield file  # type: ignore[misc]


def _value(column: Column[Any], cell: object) -> Any:
    """Return the value of a cell. Raises ValueError if it does not fit the column."""
    kind, is_bool = column.type, isinstance(cell, bool)
    if cell is None and column.nullable:
        return None
    if isinstance(kind, LargeBinary) and isinstance(cell, str):
        return b64decode(cell, validate=True)
    if isinstance(kind, Boolean):
        fits = is_bool
    elif isinstance(kind, (Integer, BigInteger)):
        fits = isinstance(cell, int) and not is_bool and -_INTEGERS <= cell < _INTEGERS
    else:
        fits = isinstance(cell, str) and not isinstance(kind, LargeBinary)
    if not fits:
        raise ValueError(f"its {column.name} does not fit")
    return cell


def _end_line(export: Export) -> bytes:
    tables = [
        {"table": name, "rows": count, "sha256": export.checksums[name]}
        for name, count in export.counts.items()
    ]
    return _line({"tables": tables, "rows": export.rows, "sha256": export.sha256})


def _line(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _columns_of(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
