"""Versions of the registry's tables, and the way from one to the next.

The steps are in `versions/`, for Alembic. It takes its time to import: only where there is something to do.
"""

import logging
import threading
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from brewos_relay.errors import RegistryError

VERSIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
HEAD: Final = VERSIONS[-1]

_FOLDER: Final = Path(__file__).parent

_LOCK: Final = 0x6272_6577
"""A number for PostgreSQL; any that nobody else in the same database uses."""

_alembic_runs = threading.Lock()  # it keeps what it works on in a global

logger = logging.getLogger(__name__)


def version_of(db: Connection) -> str | None:
    """Tell which version of the tables a database has; None if it has none of them."""
    tables = set(inspect(db).get_table_names())
    if "alembic_version" in tables:
        version: str | None = db.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if version is not None:
            return version
    # Before there were versions, there were these.
    return VERSIONS[0] if "devices" in tables else None


def check_known(version: str | None) -> None:
    """Raise RegistryError for a version that only a newer program knows."""
    if version is not None and version not in VERSIONS:
        raise RegistryError(
            f"a newer brewos-relay has changed its tables to version {version}, and this one knows them up to"
            f" {HEAD}; install one that is at least as new"
        )


def apply(db: Connection) -> list[str]:
    """Bring the tables up to date in the transaction of `db`; give the versions that were added.

    Whoever else does so at the same time waits until that transaction ends, and then finds nothing to do.
    """
    if db.dialect.name == "postgresql":
        db.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    version = version_of(db)
    check_known(version)
    added = VERSIONS if version is None else VERSIONS[VERSIONS.index(version) + 1 :]
    if added:
        with _alembic_runs:
            _run_alembic(db, version)
    if version is not None and added:
        logger.info("the registry's tables were changed from version %s to %s", version, HEAD)
    return list(added)


def _run_alembic(db: Connection, version: str | None) -> None:
    # Before it is imported: it tells of that, too.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = db
    if version is not None:
        command.stamp(config, version)
    command.upgrade(config, HEAD)
