"""The order of lists that administrators sort, and their pages."""

from typing import Any

from sqlalchemy import ColumnElement, Select, literal, select, tuple_


def ordered(
    query: Select[Any],
    column: ColumnElement[Any],
    unique: ColumnElement[Any],
    *,
    descending: bool,
    after: str,
) -> Select[Any]:
    """Sort a query by a column, and then by a unique one, and start after a value of the latter."""
    by = [column] if column is unique else [column, unique]
    if after:
        known = unique.table
        last = [select(each).select_from(known).where(unique == after).scalar_subquery() for each in by[:-1]]
        place, end = tuple_(*by), tuple_(*last, literal(after))
        query = query.where(place < end if descending else place > end)
    return query.order_by(*(each.desc() if descending else each.asc() for each in by))
