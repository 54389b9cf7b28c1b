"""Alembic environment: runs migrations on a given connection, in its transaction."""

from alembic import context

from brewos_relay.registry.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
