"""Runs migrations for Alembic over the connection, and in the transaction, that it is handed."""

from alembic import context

from brewos_relay.registry.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
