from pathlib import Path

from sqlalchemy import delete

from brewos_relay.registry.backup import back_up, restore
from brewos_relay.registry.database import Database
from brewos_relay.registry.identity import fingerprint_of
from brewos_relay.registry.schema import registry_identity
from brewos_relay.registry.transfer import export_registry, import_registry
from support.registry import NOW_MS


def fingerprint(url: str) -> str:
    with Database.open(url) as database, database.reading() as db:
        return fingerprint_of(db)


def test_each_registry_has_an_identity_that_stays(url: str, tmp_path: Path) -> None:
    first = fingerprint(url)
    assert len(first) == 16
    assert fingerprint(url) == first
    assert fingerprint(f"sqlite:///{tmp_path}/other.db") != first


def test_a_restored_backup_is_the_same_registry(tmp_path: Path) -> None:
    file, copy, restored = (tmp_path / name for name in ("a.db", "copy.db", "b.db"))
    first = fingerprint(f"sqlite:///{file}")
    back_up(file, copy)
    restore(copy, restored)
    assert fingerprint(f"sqlite:///{restored}") == first


def test_an_import_keeps_the_identity_of_its_target(tmp_path: Path) -> None:
    source, target = f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"
    before = fingerprint(source), fingerprint(target)
    with Database.open(source) as database:
        export_registry(database, tmp_path / "export", now_ms=NOW_MS, progress=lambda *_: None)
    with Database.open(target, unfinished=True) as database:
        import_registry(database, tmp_path / "export", progress=lambda *_: None)
    assert (fingerprint(source), fingerprint(target)) == before


def test_a_registry_without_its_row_has_a_fingerprint_all_the_same(url: str) -> None:
    with Database.open(url) as database, database.writing() as db:
        db.execute(delete(registry_identity))
        assert len(fingerprint_of(db)) == 16
