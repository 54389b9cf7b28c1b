"""Versions of the registry's tables, and the upgrade from one to the next.

The migrations are in `versions/`. Alembic runs them; it is slow to import, so it is imported only if there is
something to do.
"""

import logging
import threading
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from brewos_relay.errors import RegistryError

VERSIONS: Final = (
    "0001",
    "0002",
    "0003",
    "0004",
    "0005",
    "0006",
    "0007",
    "0008",
    "0009",
    "0010",
    "0011",
    "0012",
    "0013",
    "0014",
    "0015",
)
HEAD: Final = VERSIONS[-1]
_IMPORTING_ENDS: Final = "+import"
IMPORTING: Final = f"{HEAD}{_IMPORTING_ENDS}"
"""The version of a registry while an import into it is not complete; see `registry.transfer`."""

_FOLDER: Final = Path(__file__).parent

_LOCK: Final = 0x6272_6577
"""An advisory lock number for PostgreSQL that no other program in the same database uses."""

_alembic_runs = threading.Lock()  # Alembic keeps its state in a global

logger = logging.getLogger(__name__)


def version_of(db: Connection) -> str | None:
    """Return the version of a database's tables. None without tables."""
    tables = set(inspect(db).get_table_names())
    if "alembic_version" in tables:
        version: str | None = db.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if version is not None:
            return version
    # Tables from before versions were recorded.
    return VERSIONS[0] if "devices" in tables else None


def check_known(version: str | None) -> None:
    """Raise RegistryError for a version of a newer brewos-relay, and for a registry with half an import."""
    if version is not None and version.endswith(_IMPORTING_ENDS):
        raise RegistryError(
            "an import into it is not complete; run `brewos-relay db import` again with the same file and the"
            " same version of brewos-relay, or use another, empty database"
        )
    if version is not None and version not in VERSIONS:
        raise RegistryError(
            f"a newer brewos-relay has upgraded its tables to version {version}, and this one supports up to"
            f" {HEAD}; install a version that is at least as new"
        )


def apply(db: Connection) -> list[str]:
    """Upgrade the tables in the transaction of `db`. Returns the versions that were applied.

    A concurrent upgrade waits until this transaction ends, and then finds nothing to do.
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
        logger.info("the registry's tables were upgraded from version %s to %s", version, HEAD)
    return list(added)


def _run_alembic(db: Connection, version: str | None) -> None:
    # Before the import, which logs too.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = db
    if version is not None:
        command.stamp(config, version)
    command.upgrade(config, HEAD)
