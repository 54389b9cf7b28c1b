"""The identity of a registry, by which instances notice that they do not share one."""

import hashlib

from sqlalchemy import Connection, select

from brewos_relay.registry.schema import registry_identity


def fingerprint_of(db: Connection) -> str:
    """Return a fingerprint of the registry's identity, which instances show each other.

    The migration that created the table chose the identity at random. Backups and other copies of a
    database keep it, since they are the same registry. An import keeps that of its target: instances that
    still use the database from before the move are found.
    """
    identity = db.scalar(select(registry_identity.c.identity)) or ""
    return hashlib.sha256(f"brewos-relay registry\0{identity}".encode()).hexdigest()[:16]
