"""Random rows for every table of a registry, as far as its columns allow."""

from typing import Any, TypeAlias

from hypothesis import strategies as st
from sqlalchemy import BigInteger, Boolean, Column, Connection, Integer, LargeBinary, String, Table, insert

from brewos_relay.registry.export_file import TABLES

Rows: TypeAlias = dict[str, list[dict[str, Any]]]

ROWS_AT_MOST = 4

# PostgreSQL stores no NUL in a text, and UTF-8 has no surrogates.
_CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")


@st.composite
def registry_rows(draw: st.DrawFn) -> Rows:
    """Draw rows of every table, whose references exist."""
    rows: Rows = {}
    for name, table in TABLES.items():
        rows[name] = _unique(
            table, [_row(draw, table, rows) for _ in range(draw(st.integers(0, ROWS_AT_MOST)))]
        )
    return rows


def add_rows(db: Connection, rows: Rows) -> None:
    """Add rows, each table after the tables that it refers to."""
    for name, table in TABLES.items():
        if rows[name]:
            db.execute(insert(table), rows[name])


def _row(draw: st.DrawFn, table: Table, rows: Rows) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in table.columns:
        for key in column.foreign_keys:
            there = [each[key.column.name] for each in rows[key.column.table.name]]
            options = [*there, None] if column.nullable else there
            row[column.name] = draw(st.sampled_from(options)) if options else None
            break
        else:
            row[column.name] = draw(_values(column))
    return row


def _values(column: Column[Any]) -> st.SearchStrategy[Any]:
    kind = column.type
    values: st.SearchStrategy[Any]
    if isinstance(kind, Boolean):
        values = st.booleans()
    elif isinstance(kind, LargeBinary):
        values = st.binary(max_size=40)
    elif column.table.name in ("activity", "notices", "shots") and column.primary_key:
        values = st.integers(1, 2**62)
    elif isinstance(kind, BigInteger):
        values = st.integers(-(2**63), 2**63 - 1)
    elif isinstance(kind, Integer):
        values = st.integers(-(2**31), 2**31 - 1)
    else:
        longest = kind.length if isinstance(kind, String) else None
        values = st.text(_CHARACTERS, max_size=min(longest or 40, 40))
    return st.none() | values if column.nullable else values


def _unique(table: Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out rows without a reference that they need, and rows with keys that others have."""
    keys = [[column.name for column in table.primary_key]]
    keys += [[column.name] for column in table.columns if column.unique]
    keys += [[column.name for column in index.columns] for index in table.indexes if index.unique]
    needed = [column.name for column in table.columns if not column.nullable]
    seen: set[Any] = set()
    kept = []
    for row in rows:
        mine = {(tuple(key), tuple(row[name] for name in key)) for key in keys}
        if not mine & seen and all(row[name] is not None for name in needed):
            seen |= mine
            kept.append(row)
    return kept
