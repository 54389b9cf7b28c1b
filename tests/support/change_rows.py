"""The rows of the change feed, as tests compare them."""

from sqlalchemy import Connection, select

from brewos_relay.registry.records import Change
from brewos_relay.registry.schema import changes


def read_changes(db: Connection, after_id: int) -> list[Change]:
    """Read the changes with greater ids, in the order of their ids."""
    query = select(changes).where(changes.c.id > after_id).order_by(changes.c.id)
    return [Change(**row) for row in db.execute(query).mappings()]
