import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.errors import RegistryError
from brewos_relay.registry.backup import back_up, restore
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, all_devices
from brewos_relay.registry.migrations import HEAD
from brewos_relay.registry.records import NewDevice
from support.process import machine_id

WRITER = """
import sys
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice

with Database.open(sys.argv[1]) as database:
    for number in range(1, 10**6):
        pair = [NewDevice(id=f"BRW-{number:07X}{half}", key_hash=b"k" * 32) for half in "01"]
        with database.writing() as db:
            add_devices(db, pair, now_ms=number)
        if number == 20:
            print("busy", flush=True)
"""

READER = """
import sqlite3, sys

connection = sqlite3.connect(sys.argv[1])
print(*connection.execute("SELECT count(*) FROM devices"), flush=True)
input()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "registry.db"


def opened(file: Path) -> Database:
    return Database.open(f"sqlite:///{file}")


def add(file: Path, *numbers: int) -> None:
    devices = [NewDevice(id=machine_id(number), key_hash=hash_secret("k" * 43)) for number in numbers]
    with opened(file) as database, database.writing() as db:
        add_devices(db, devices, now_ms=1_000)


def ids(file: Path) -> list[str]:
    with opened(file) as database, database.reading() as db:
        return sorted(device.id for device in all_devices(db))


def beside(file: Path) -> set[str]:
    """List the names of the files in a file's folder."""
    return {path.name for path in file.parent.iterdir()}


def test_backup_and_restore(file: Path, tmp_path: Path) -> None:
    add(file, 1, 2)
    copy = back_up(file, tmp_path / "copy.db")
    assert (copy.devices, copy.version, copy.kept) == (2, HEAD, None)
    assert copy.size_bytes == (tmp_path / "copy.db").stat().st_size
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
    assert beside(tmp_path / "copy.db") == {"data", "copy.db"}  # nothing half made, no log beside it
    add(file, 3)
    restored = restore(tmp_path / "copy.db", file)
    assert restored.devices == 2
    assert ids(file) == [machine_id(1), machine_id(2)]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert restored.kept is not None
    assert restored.kept.name.startswith("registry.db.before-20")
    assert len(ids(restored.kept)) == 3


def test_a_copy_of_a_registry_in_use(file: Path, tmp_path: Path) -> None:
    add(file, 1)
    with opened(file) as database:
        with database.writing() as db:
            add_devices(db, [NewDevice(id=machine_id(2), key_hash=b"k" * 32)], now_ms=1)
            assert back_up(file, tmp_path / "before.db").devices == 1  # without the uncommitted device
        assert back_up(file, tmp_path / "after.db").devices == 2  # although the second is in the log only


def test_a_copy_while_another_process_writes(file: Path, tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, f"sqlite:///{file}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "busy\n"
            counts = []
            for number in range(5):
                copy = back_up(file, tmp_path / f"copy-{number}.db")
                found = ids(tmp_path / f"copy-{number}.db")
                assert len(found) == copy.devices
                assert {each[:-1] + "0" for each in found} == {each[:-1] + "0" for each in found[::2]}
                assert len(found) % 2 == 0  # all of each transaction, or nothing
                counts.append(copy.devices)
            assert counts == sorted(set(counts))  # the process continued to write
            assert counts[0] >= 40
            with pytest.raises(RegistryError, match="is in use; stop the server"):
                restore(tmp_path / "copy-0.db", file)
            assert writer.poll() is None
        finally:
            writer.kill()
    before = len(ids(tmp_path / "copy-4.db"))
    kept = restore(tmp_path / "copy-0.db", file).kept
    assert len(ids(file)) == counts[0]
    assert kept is not None
    assert len(ids(kept)) >= before  # including the log of the killed process


def test_existing_file_is_not_overwritten(file: Path, tmp_path: Path) -> None:
    add(file, 1)
    target = tmp_path / "copy.db"
    target.write_bytes(b"precious")
    with pytest.raises(RegistryError, match=r"copy\.db exists already; .* --force"):
        back_up(file, target)
    assert target.read_bytes() == b"precious"
    assert back_up(file, target, replace=True).devices == 1
    assert ids(target) == [machine_id(1)]
    for same in (file, file.parent / ".." / "data" / file.name):
        with pytest.raises(RegistryError, match="is the registry itself"):
            back_up(file, same, replace=True)
        with pytest.raises(RegistryError, match="is the registry itself"):
            restore(same, file)


@pytest.mark.parametrize("linking", [True, False])
def test_file_created_during_the_copy_is_not_overwritten(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linking: bool
) -> None:
    add(file, 1)
    target = tmp_path / "copy.db"

    def link(source: Path, name: Path) -> None:
        name.write_bytes(b"precious")
        raise FileExistsError if linking else PermissionError

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RegistryError, match="created meanwhile"):
        back_up(file, target)
    assert target.read_bytes() == b"precious"
    assert beside(target) == {"copy.db", "data"}


def test_backup_works_without_hard_links(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, name: Path) -> None:
        raise PermissionError

    add(file, 1)
    monkeypatch.setattr(os, "link", link)
    assert back_up(file, tmp_path / "copy.db").devices == 1
    assert beside(tmp_path / "copy.db") == {"copy.db", "data"}


def test_missing_folder_is_reported(file: Path, tmp_path: Path) -> None:
    add(file, 1)
    with pytest.raises(RegistryError, match=r"cannot create a file in .*missing: No such file"):
        back_up(file, tmp_path / "missing" / "copy.db")


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096:] = b"\x5a" * (len(data) - 4096)
    file.write_bytes(bytes(data))


@pytest.fixture
def copy(file: Path, tmp_path: Path) -> Iterator[Path]:
    """Make a copy with one device of a registry that has two afterwards, and still has them at the end."""
    add(file, 1)
    back_up(file, tmp_path / "copy.db")
    add(file, 2)
    yield tmp_path / "copy.db"
    assert len(ids(file)) == 2
    assert beside(file) <= {"registry.db", "registry.db-wal", "registry.db-shm"}


def test_damaged_copy_is_not_restored(file: Path, copy: Path) -> None:
    damage(copy)
    with pytest.raises(RegistryError, match=r"copy\.db (is damaged|cannot be copied)"):
        restore(copy, file)


def test_dangling_references_are_damage(file: Path, copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as db:
        db.execute(
            "INSERT INTO device_users (user_id, device_id, role, claimed_at_ms)"
            " VALUES ('a', 'BRW-1', 'owner', 1)"
        )
        db.commit()
    with pytest.raises(RegistryError, match="is damaged: rows refer to missing rows"):
        restore(copy, file)


def test_other_files_are_not_restored(file: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"espresso" * 1000)
    with pytest.raises(RegistryError, match="text cannot be copied: file is not a database"):
        restore(tmp_path / "text", file)
    with closing(sqlite3.connect(tmp_path / "other")) as db:
        db.execute("CREATE TABLE beans (name TEXT)")
    with pytest.raises(RegistryError, match="other is not a registry"):
        restore(tmp_path / "other", file)
    with pytest.raises(RegistryError, match="nothing does not exist"):
        restore(tmp_path / "nothing", file)


def test_copy_of_a_newer_version_is_not_restored(file: Path, copy: Path) -> None:
    with closing(sqlite3.connect(copy)) as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
        db.commit()
    with pytest.raises(RegistryError, match=r"newer brewos-relay .* 9999"):
        restore(copy, file)


def test_open_registry_is_not_replaced(file: Path, copy: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", READER, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        with pytest.raises(RegistryError, match="is in use"):
            restore(copy, file)
        other.communicate("\n")


def test_a_damaged_registry_is_replaced_and_kept_as_it_is(file: Path, tmp_path: Path) -> None:
    add(file, 1)
    back_up(file, tmp_path / "copy.db")
    damage(file)
    damaged = file.read_bytes()
    with pytest.raises(RegistryError, match=r"registry\.db (is damaged|cannot be copied)"):
        back_up(file, tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists()
    kept = restore(tmp_path / "copy.db", file).kept
    assert kept is not None
    assert kept.read_bytes() == damaged
    assert ids(file) == [machine_id(1)]


def test_restore_creates_a_missing_registry(tmp_path: Path) -> None:
    add(tmp_path / "a.db", 1)
    back_up(tmp_path / "a.db", tmp_path / "copy.db")
    new = tmp_path / "elsewhere" / "registry.db"
    assert restore(tmp_path / "copy.db", new).kept is None
    assert ids(new) == [machine_id(1)]
    assert stat.S_IMODE(new.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(new.stat().st_mode) == 0o600


def test_two_restores_within_a_second_keep_both_files(file: Path, tmp_path: Path) -> None:
    add(file, 1)
    back_up(file, tmp_path / "copy.db")
    kept = {restore(tmp_path / "copy.db", file).kept for _ in range(3)}
    assert len(kept) == 3
    assert all(path is not None and ids(path) == [machine_id(1)] for path in kept)


def test_an_old_copy_is_brought_up_to_date_when_it_is_opened(file: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as db:
        db.executescript(
            "CREATE TABLE devices (id VARCHAR(12) PRIMARY KEY, key_hash BLOB NOT NULL, name VARCHAR(100),"
            " created_at_ms BIGINT NOT NULL, last_seen_ms BIGINT) WITHOUT ROWID;"
            "CREATE TABLE device_users (user_id VARCHAR(256), device_id VARCHAR(12) REFERENCES devices(id)"
            " ON DELETE CASCADE, PRIMARY KEY (user_id, device_id)) WITHOUT ROWID;"
            "CREATE INDEX device_users_by_device ON device_users (device_id);"
        )
    assert restore(old, file).version == "0001"
    with opened(file) as database, database.reading() as db:
        assert db.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_restores_for_the_user_of_the_server(file: Path, tmp_path: Path) -> None:
    add(file, 1)
    back_up(file, tmp_path / "copy.db")
    os.chown(file, 12345, 12345)
    restore(tmp_path / "copy.db", file)
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 12345)
    shutil.rmtree(file.parent)
    file.parent.mkdir()
    os.chown(file.parent, 12345, 12345)
    restore(tmp_path / "copy.db", file)
    assert file.stat().st_uid == 12345
