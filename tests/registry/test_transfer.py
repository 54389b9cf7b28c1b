"""Moving a registry to another database: both kinds, in both directions, interrupted and damaged."""

import gzip
import json
import os
import random
import resource
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import create_engine, func, insert, select, text, update

from brewos_relay.errors import RegistryError
from brewos_relay.registry import export_file, migrations, transfer
from brewos_relay.registry.access import users_of
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.database import Database, upgrade, version
from brewos_relay.registry.export_file import TABLES
from brewos_relay.registry.schema import activity, changes, device_users, devices, notices, users
from brewos_relay.registry.transfer import export_registry, import_registry
from support.postgresql import PostgreSQL
from support.registry import NOW_MS, device_id, new_device, register
from support.registry_rows import Rows, add_rows, registry_rows

KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]

NewDatabase = Callable[[str], str]


def quiet(_what: str, _done: int, _total: int) -> None:
    """Take the progress of a transfer."""


@pytest.fixture
def new_url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NewDatabase]:
    """Return a function that returns the URL of an empty registry of a kind."""
    opened: list[Any] = []

    def new(kind: str) -> str:
        if kind == "sqlite":
            opened.append(None)
            return f"sqlite:///{tmp_path}/registry-{len(opened)}.db"
        postgresql: PostgreSQL = request.getfixturevalue("postgresql")
        manager = postgresql.new_database()
        opened.append(manager)
        url: str = manager.__enter__()
        return url

    yield new
    for manager in filter(None, opened):
        manager.__exit__(None, None, None)


def export(url: str, target: Path, **more: Any) -> Path:
    with Database.open(url) as database:
        export_registry(database, target, now_ms=NOW_MS, progress=quiet, **more)
    return target


def take(url: str, source: Path, progress: export_file.Progress = quiet) -> None:
    with Database.open(url, unfinished=True) as database:
        import_registry(database, source, progress=progress)


def fill(url: str, many: int = 3) -> None:
    """Add machines of Ada, an account, activity and notices."""
    with Database.open(url) as database:
        register(database, [new_device(number, "ada") for number in range(1, many + 1)])
        with database.writing() as db:
            row = {"email": "ada@example.org", "is_admin": True, "created_at_ms": 1, "email_key": "ada"}
            db.execute(insert(users).values(id="a" * 32, **row))
            db.execute(
                insert(activity),
                [
                    {"device_id": device_id(1), "at_ms": number, "kind": "online", "detail": "{}"}
                    for number in range(3)
                ],
            )
            db.execute(
                insert(notices).values(user_id="a" * 32, at_ms=1, kind="device_lost", device_id=device_id(1))
            )
            db.execute(activity.delete().where(activity.c.at_ms == 2))  # the last id stays used


def clear(url: str) -> None:
    """Delete all rows, their ids, and an import that failed."""
    with Database.open(url, unfinished=True) as database, database.writing() as db:
        db.execute(text("DROP TABLE IF EXISTS registry_import"))
        db.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": migrations.HEAD})
        for table in reversed([*TABLES.values()]):
            db.execute(table.delete())
        if db.dialect.name == "postgresql":
            for name in ("activity", "notices", "shots"):
                db.execute(text(f"ALTER SEQUENCE {name}_id_seq RESTART"))
        else:
            db.execute(text("DELETE FROM sqlite_sequence"))


# Both directions


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("sqlite", "sqlite"),
        pytest.param("sqlite", "postgresql", marks=pytest.mark.postgresql),
        pytest.param("postgresql", "sqlite", marks=pytest.mark.postgresql),
    ],
)
def test_every_row_arrives(new_url: NewDatabase, tmp_path: Path, here: str, there: str) -> None:
    source, target = new_url(here), new_url(there)
    numbers = iter(range(1_000_000))

    @settings(max_examples=5, suppress_health_check=list(HealthCheck))
    @given(registry_rows())
    def move(rows: Rows) -> None:
        number = next(numbers)
        for url in (source, target):
            clear(url)
        with Database.open(source) as database, database.writing() as db:
            add_rows(db, rows)
            if db.dialect.name == "postgresql":
                for name in ("activity", "notices", "shots"):
                    last = max((row["id"] for row in rows[name]), default=0)
                    if last:
                        db.execute(select(func.setval(f"{name}_id_seq", last)))
        first = export(source, tmp_path / f"first-{number}.jsonl")
        take(target, first)
        second = export(target, tmp_path / f"second-{number}.jsonl.gz")
        assert first.read_bytes() == gzip.decompress(second.read_bytes())
        assert json.loads(first.read_bytes().splitlines()[0])["rows"] == sum(map(len, rows.values()))

    move()


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_moved_registry_can_be_used(new_url: NewDatabase, tmp_path: Path, here: str, there: str) -> None:
    source, target = new_url(here), new_url(there)
    fill(source)
    take(target, export(source, tmp_path / "export.jsonl"))
    assert version(target)[1] == migrations.HEAD
    event = {"device_id": device_id(1), "at_ms": 9, "kind": "online", "detail": "{}"}
    notice = {"user_id": "a" * 32, "at_ms": 9, "kind": "device_lost", "device_id": device_id(1)}
    with Database.open(target) as database, database.writing() as db:
        assert [user.user_id for user in users_of(db, device_id(2), now_ms=NOW_MS)] == ["ada"]
        assert db.scalars(select(activity.c.id).order_by(activity.c.id)).all() == [1, 2]
        # No id is given twice.
        assert db.scalar(insert(activity).values(**event).returning(activity.c.id)) == 4
        assert db.scalar(insert(notices).values(**notice).returning(notices.c.id)) == 2
        assert "registry_import" not in set(db.scalars(text(_TABLE_NAMES[db.dialect.name])))


_TABLE_NAMES = {
    "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
    "postgresql": "SELECT tablename FROM pg_tables",
}


def test_change_feed_is_not_moved(new_url: NewDatabase, tmp_path: Path) -> None:
    source, target = new_url("sqlite"), new_url("sqlite")
    with Database.open(source) as database, database.writing() as db:
        publish_change(db, "key_changed", now_ms=1)
    take(target, export(source, tmp_path / "export.jsonl"))
    with Database.open(target) as database, database.reading() as db:
        assert db.execute(select(func.count()).select_from(changes)).scalar_one() == 0


# Export


@pytest.mark.parametrize("here", KINDS)
def test_export_is_one_state_while_others_write(new_url: NewDatabase, tmp_path: Path, here: str) -> None:
    source = new_url(here)
    fill(source, 50)
    ended = threading.Event()

    def write_pairs() -> None:
        """Add a device and its user together."""
        with Database.open(source) as database:
            for number in range(1000, 100_000):
                if ended.is_set():
                    return
                register(database, [new_device(number, "bob")])

    writer = threading.Thread(target=write_pairs)
    writer.start()
    try:
        for number in range(5):
            file = export(source, tmp_path / f"{number}.jsonl")
            counts = {
                each["table"]: each["rows"]
                for each in json.loads(file.read_bytes().splitlines()[-1])["tables"]
            }
            assert counts["devices"] == counts["device_users"]
            take(new_url("sqlite"), file)
    finally:
        ended.set()
        writer.join()


def test_only_this_user_can_read_the_file(new_url: NewDatabase, tmp_path: Path) -> None:
    source = new_url("sqlite")
    fill(source)
    umask = os.umask(0)
    try:
        file = export(source, tmp_path / "export.jsonl.gz")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(RegistryError, match=r"exists already; .* --force"):
        export(source, file)
    assert export(source, file, replace=True) == file
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("registry")) == [
        file.name
    ]


def test_interrupted_export_leaves_no_file(new_url: NewDatabase, tmp_path: Path) -> None:
    source = new_url("sqlite")
    fill(source)
    folder = tmp_path / "exports"
    folder.mkdir()

    def interrupt(_what: str, done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with Database.open(source) as database, pytest.raises(KeyboardInterrupt):
        export_registry(database, folder / "export.jsonl", now_ms=1, progress=interrupt)
    assert list(folder.iterdir()) == []


# Interruptions


@pytest.mark.parametrize("there", KINDS)
def test_import_continues_after_every_batch(
    new_url: NewDatabase, tmp_path: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ROWS_AT_ONCE", 2)
    source, target = new_url("sqlite"), new_url(there)
    fill(source, 5)
    file = export(source, tmp_path / "export.jsonl.gz")
    imported: list[int] = []

    def interrupt(what: str, done: int, _total: int) -> None:
        if what == "imported":
            imported.append(done)
            raise KeyboardInterrupt

    while True:
        before = len(imported)
        try:
            take(target, file, interrupt)
        except KeyboardInterrupt:
            for use in (Database.open, upgrade):
                with pytest.raises(RegistryError, match=r"not complete; run `brewos-relay db import` again"):
                    use(target)
        if len(imported) == before:
            break
    assert len(imported) > 5
    assert imported == sorted(set(imported))
    assert export(target, tmp_path / "again.jsonl.gz").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("there", KINDS)
def test_batch_that_fails_is_imported_again(
    new_url: NewDatabase, tmp_path: Path, there: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ROWS_AT_ONCE", 2)
    source, target = new_url("sqlite"), new_url(there)
    fill(source, 5)
    file = export(source, tmp_path / "export.jsonl")
    advance = transfer._advance

    def fail(db: Any, found: export_file.Export, done: int, count: int) -> None:
        advance(db, found, done, count)
        if done >= 4:
            raise RegistryError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_advance", fail)
        with pytest.raises(RegistryError, match=r"rows 5 to 6, .*: the disk is full; run the same command"):
            take(target, file)
    take(target, file)
    assert export(target, tmp_path / "again.jsonl").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("when", ["imported", "verified"])
@pytest.mark.parametrize("there", KINDS)
def test_two_imports_at_once_do_not_mix(
    new_url: NewDatabase, tmp_path: Path, there: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "ROWS_AT_ONCE", 1)
    source, target = new_url("sqlite"), new_url(there)
    fill(source, 5)
    file = export(source, tmp_path / "export.jsonl")
    nested: list[None] = []

    def start_another(what: str, done: int, total: int) -> None:
        if (what, done) == (when, total if when == "verified" else 2) and not nested:
            nested.append(None)
            take(target, file)

    with pytest.raises(RegistryError, match="another import into this registry runs"):
        take(target, file, start_another)
    assert export(target, tmp_path / "again.jsonl").read_bytes() == file.read_bytes()


def test_part_of_another_file_is_not_continued(new_url: NewDatabase, tmp_path: Path) -> None:
    one, other, target = new_url("sqlite"), new_url("sqlite"), new_url("sqlite")
    fill(one)
    fill(other, 7)

    def interrupt(what: str, _done: int, _total: int) -> None:
        if what == "imported":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(target, export(one, tmp_path / "one.jsonl"), interrupt)
    with pytest.raises(
        RegistryError, match=r"a part of another file, .*; continue with that file, or import"
    ):
        take(target, export(other, tmp_path / "other.jsonl"))
    take(target, tmp_path / "one.jsonl")


# Refusals


@contextmanager
def unchanged(url: str) -> Iterator[None]:
    """Check that a registry stays empty and usable."""
    yield
    with Database.open(url) as database, database.reading() as db:
        assert all(db.execute(select(table).limit(1)).first() is None for table in TABLES.values())


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_damaged_file_is_refused(new_url: NewDatabase, tmp_path: Path, compressed: bool) -> None:
    source, target = new_url("sqlite"), new_url("sqlite")
    fill(source)
    file = export(source, tmp_path / ("whole.jsonl.gz" if compressed else "whole.jsonl"))
    whole = file.read_bytes()
    content = gzip.decompress(whole) if compressed else whole
    chance = random.Random(7)
    damaged = tmp_path / "damaged"
    refused = 0
    with unchanged(target), Database.open(target) as database:
        for _ in range(300):
            data = bytearray(whole)
            place = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[place] ^= 1 << chance.randrange(8)
                case 1:
                    del data[place:]
                case _:
                    data.insert(place, chance.randrange(256))
            damaged.write_bytes(data)
            try:
                export_file.check_export(damaged, progress=quiet)
            except RegistryError:
                refused += 1
            else:
                # Only what does not belong to the content: the head of a compressed file.
                assert compressed
                assert gzip.decompress(bytes(data)) == content
        for cut in range(0, len(whole), 97):
            damaged.write_bytes(whole[:cut])
            with pytest.raises(RegistryError):
                import_registry(database, damaged, progress=quiet)
        damaged.write_bytes(whole + b"\n")
        with pytest.raises(RegistryError):
            import_registry(database, damaged, progress=quiet)
    assert refused > 280


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: {**head, "version": 2}, r"newer brewos-relay.*install a version"),
        (lambda head: {**head, "schema": "9999"}, r"newer brewos-relay, with tables of version 9999"),
        (lambda head: {**head, "schema": "0003"}, r"version 0003, .*run `brewos-relay db upgrade` on the"),
        (lambda head: {**head, "format": "beans"}, r"is not a file of `brewos-relay db export`"),
        (lambda head: {**head, "rows": -1}, r"line 1: the head is incomplete"),
        (lambda head: {**head, "lastIds": {"beans": 1}}, r"line 1: the last ids are wrong"),
        (lambda head: {**head, "rows": head["rows"] + 1}, r"its checksums differ"),
        (lambda _: [1], r"line 1: it is not a JSON object"),
        (lambda _: "beans", r"line 1: it is not a JSON object"),
    ],
)
def test_other_files_are_refused(
    new_url: NewDatabase, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    source, target = new_url("sqlite"), new_url("sqlite")
    fill(source)
    file = export(source, tmp_path / "export.jsonl")
    head, rest = file.read_bytes().split(b"\n", 1)
    file.write_bytes(json.dumps(change(json.loads(head))).encode() + b"\n" + rest)
    with unchanged(target), pytest.raises(RegistryError, match=message):
        take(target, file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"table":"devices"', b'"table":"beans"', "does not begin the expected table"),
        (b'"table":"devices"', b'"table":"activity"', "does not begin the expected table"),
        (b'"columns":["id","key_hash"', b'"columns":["id"', "does not begin the expected table"),
        (b'"rows":3}\n["BRW', b'"rows":"3"}\n["BRW', "the number of rows is wrong"),
        (b'["BRW-00000001","', b'["BRW-00000001","*', "a row of the table devices"),
        (b'["BRW-00000001",', b"[null,", "its id does not fit"),
        (b'["BRW-00000001",', b"[7,", "its id does not fit"),
        (b'["BRW-00000001",', b'["BRW-00000001",1,', "it is not a row of the table devices"),
        (b",false,", b",0,", "its registered_itself does not fit"),
        (b",1800000000000,", b",1e400,", "its created_at_ms does not fit"),
        (b",1800000000000,", b",9223372036854775808,", "its created_at_ms does not fit"),
        (b",1800000000000,", b",true,", "its created_at_ms does not fit"),
        (b'["BRW-00000001",', b'["BRW-00000001",' + b"[" * 100_000, "it is not JSON"),
        (b'["BRW-00000001",', b'["' + b"x" * export_file.LINE_BYTES_AT_MOST, "the line is too long"),
    ],
)
def test_rows_that_do_not_fit_are_refused(
    new_url: NewDatabase, tmp_path: Path, old: bytes, new: bytes, message: str
) -> None:
    source = new_url("sqlite")
    fill(source)
    file = export(source, tmp_path / "export.jsonl")
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))
    with pytest.raises(RegistryError, match=message):
        export_file.check_export(file, progress=quiet)


@pytest.mark.parametrize("there", KINDS)
def test_registry_with_rows_is_refused(new_url: NewDatabase, tmp_path: Path, there: str) -> None:
    source, target = new_url("sqlite"), new_url(there)
    fill(source)
    fill(target, 1)
    with pytest.raises(
        RegistryError, match=r"is not empty, its table activity has 2 rows; import into an empty"
    ):
        take(target, export(source, tmp_path / "export.jsonl"))
    with Database.open(target) as database, database.reading() as db:
        assert db.execute(select(func.count()).select_from(devices)).scalar_one() == 1


@pytest.mark.parametrize("there", KINDS)
def test_row_that_changes_during_the_import_is_noticed(
    new_url: NewDatabase, tmp_path: Path, there: str
) -> None:
    source, target = new_url("sqlite"), new_url(there)
    fill(source)
    file = export(source, tmp_path / "export.jsonl")

    def meddle(what: str, done: int, total: int) -> None:
        if what == "imported" and done == total:
            engine = create_engine(target)
            with engine.begin() as db:
                db.execute(update(device_users).values(role="viewer"))
            engine.dispose()

    with pytest.raises(RegistryError, match=r"table device_users differs .* 3 of 3 rows, or others"):
        take(target, file, meddle)
    with pytest.raises(RegistryError, match="not complete"):
        Database.open(target)


@pytest.mark.postgresql
def test_text_that_postgresql_cannot_store_is_refused(new_url: NewDatabase, tmp_path: Path) -> None:
    source, target = new_url("sqlite"), new_url("postgresql")
    with Database.open(source) as database:
        register(database, [new_device(1)])
        with database.writing() as db:
            db.execute(update(devices).values(name="x" * 101))
    with pytest.raises(RegistryError, match=r"rows 1 to 1, of the table devices: .*value too long"):
        take(target, export(source, tmp_path / "export.jsonl"))


# Size


@pytest.mark.parametrize("there", KINDS)
def test_memory_is_bounded(new_url: NewDatabase, tmp_path: Path, there: str) -> None:
    many = 3000
    source, target = new_url("sqlite"), new_url(there)
    with Database.open(source) as database:
        for start in range(0, many, 1000):
            register(database, [new_device(number, "ada") for number in range(start, start + 1000)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    take(target, export(source, tmp_path / "export.jsonl.gz"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024 * (1 if sys.platform == "linux" else 1024)
