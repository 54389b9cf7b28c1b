import io
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from brewos_relay.commands.output import ProgressLine
from brewos_relay.registry import transfer
from brewos_relay.registry.migrations import HEAD

from .conftest import Run, add_account, assert_refused, opened

FILE = Path("data", "brewos-relay.db")


def make_old() -> None:
    """Create a registry of the time before versions."""
    FILE.parent.mkdir()
    engine = create_engine(f"sqlite:///{FILE}")
    with engine.begin() as db:
        db.execute(
            text(
                "CREATE TABLE devices (id VARCHAR(12) PRIMARY KEY, key_hash BLOB NOT NULL, name VARCHAR(100),"
                " created_at_ms BIGINT NOT NULL, last_seen_ms BIGINT) WITHOUT ROWID"
            )
        )
        db.execute(
            text(
                "CREATE TABLE device_users (user_id VARCHAR(256),"
                " device_id VARCHAR(12) REFERENCES devices(id) ON DELETE CASCADE,"
                " PRIMARY KEY (user_id, device_id)) WITHOUT ROWID"
            )
        )
        db.execute(text("CREATE INDEX device_users_by_device ON device_users (device_id)"))
    engine.dispose()


def test_current_registry_stays_as_it_is(run: Run) -> None:
    with opened():
        pass
    outcome = run("db", "status")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"registry  {FILE.absolute()}\nversion   {HEAD}\n"
    outcome = run("db", "upgrade")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"The tables are up to date, at version {HEAD}.\n"


def test_old_registry_is_reported_and_upgraded(run: Run) -> None:
    make_old()
    for _ in range(2):  # `status` changes nothing
        outcome = run("db", "status")
        assert outcome.code == 1
        assert outcome.out == f"registry  {FILE.absolute()}\nversion   0001\n"
        assert "`brewos-relay db upgrade`" in outcome.err
    outcome = run("db", "upgrade")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"Upgraded the tables from version 0001 to version {HEAD}.\n"
    assert run("db", "status").code == 0


def test_upgrade_creates_a_missing_registry(run: Run) -> None:
    assert_refused(run("db", "status"), 1, f"there is no registry {FILE.absolute()}")
    assert not FILE.exists()
    assert run("db", "upgrade").err == f"Upgraded the tables to version {HEAD}.\n"
    assert run("db", "status").code == 0


@pytest.mark.parametrize("command", ["status", "upgrade"])
def test_newer_registry_is_refused(run: Run, command: str) -> None:
    with opened() as db:
        db.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert_refused(run("db", command), 1, "9999", "newer")


@pytest.mark.parametrize("command", ["status", "upgrade"])
def test_file_that_is_not_a_registry_is_refused(run: Run, command: str) -> None:
    FILE.parent.mkdir()
    FILE.write_bytes(b"espresso" * 1000)
    assert_refused(run("db", command), 1, "cannot open the database", "file is not a database")


def test_backup_can_be_restored(run: Run) -> None:
    with opened():
        pass
    outcome = run("db", "backup", "copy.db")
    assert (outcome.code, outcome.out) == (0, "")
    size_bytes = Path("copy.db").stat().st_size
    what = f"0 devices, tables of version {HEAD}, {size_bytes} bytes"
    assert outcome.err == f"copy.db contains {what}.\n"
    assert_refused(run("db", "backup", "copy.db"), 1, "copy.db exists already", "--force")
    assert run("db", "backup", "--force", "copy.db").code == 0
    with opened() as db:
        db.execute(
            text("INSERT INTO devices (id, key_hash, created_at_ms) VALUES ('BRW-0000001A', X'00', 1)")
        )
    outcome = run("db", "restore", "copy.db")
    assert (outcome.code, outcome.out) == (0, "")
    first, second = outcome.err.splitlines()
    assert first == f"Restored {FILE.absolute()} from copy.db: {what}."
    assert second.startswith(f"The previous registry is kept as {FILE.absolute()}.before-20")
    assert run("db", "backup", "--force", "copy.db").err.startswith("copy.db contains 0 devices")
    assert (
        run("db", "restore", second.removeprefix("The previous registry is kept as ").rstrip(".")).code == 0
    )
    assert run("db", "backup", "--force", "copy.db").err.startswith("copy.db contains 1 device,")


def test_backup_without_a_registry_is_refused(run: Run) -> None:
    assert_refused(run("db", "backup", "copy.db"), 1, f"there is no registry {FILE.absolute()}")
    assert not FILE.parent.exists()
    assert_refused(run("db", "restore", "copy.db"), 2, "copy.db")


@pytest.mark.parametrize(
    ("url", "hints"),
    [
        ("postgresql+psycopg://relay:secret@db/relay", {"backup": "pg_dump", "restore": "pg_restore"}),
        ("mysql://relay:secret@db/relay", {"backup": "tools", "restore": "tools"}),
    ],
)
def test_other_databases_are_referred_to_their_tools(
    run: Run, monkeypatch: pytest.MonkeyPatch, url: str, hints: dict[str, str]
) -> None:
    monkeypatch.setenv("BREWOS_RELAY_DATABASE_URL", url)
    Path("copy.db").write_bytes(b"")
    for command, hint in hints.items():
        outcome = run("db", command, "copy.db")
        assert_refused(outcome, 1, hint)
        assert "secret" not in outcome.err


def test_registry_is_exported_and_imported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_refused(run("db", "export", "rows.jsonl"), 1, f"there is no registry {FILE.absolute()}")
    add_account("a" * 32, "ada@example.org")
    assert run("device", "add", "BRW-0000001A").code == 0
    outcome = run("db", "export", "rows.jsonl.gz")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == "rows.jsonl.gz contains 1 device and 1 account, 2 rows in all.\n", "no progress"
    assert_refused(run("db", "export", "rows.jsonl.gz"), 1, "rows.jsonl.gz exists already", "--force")
    assert run("db", "export", "--force", "rows.jsonl.gz").code == 0
    assert_refused(run("db", "import", "rows.jsonl.gz"), 1, "not empty", "empty database")
    outcome = run("db", "import", "rows.jsonl.gz", "--data-dir", "new")
    assert (outcome.code, outcome.out) == (0, "")
    place = Path("new", "brewos-relay.db").absolute()
    assert outcome.err == f"Imported 1 device and 1 account, 2 rows in all into {place}.\n"
    assert "BRW-0000001A" in run("device", "list", "--data-dir", "new").out
    Path("rows.jsonl.gz").write_bytes(b"espresso")
    assert_refused(run("db", "import", "rows.jsonl.gz", "--data-dir", "other"), 1, "rows.jsonl.gz is damaged")
    assert_refused(run("db", "import", "missing"), 2, "missing")


def test_interrupted_import_tells_how_to_continue(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("device", "add", "BRW-0000001A").code == 0
    assert run("db", "export", "rows.jsonl").code == 0
    monkeypatch.setenv("DATA_DIR", "new")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_advance", interrupt)
        outcome = run("db", "import", "rows.jsonl")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "Interrupted. Run the same command again to continue.\n"
    for command in (["device", "list"], ["db", "status"], ["db", "upgrade"], ["db", "backup", "copy.db"]):
        assert_refused(
            run(*command), 1, "an import into it is not complete; run `brewos-relay db import` again"
        )
    assert run("db", "import", "rows.jsonl").code == 0
    assert "BRW-0000001A" in run("device", "list").out


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    line = ProgressLine()
    line.clear()
    assert terminal.getvalue() == ""
    line.show("imported", 1000, 100_000)
    for done in range(1001, 1010):
        line.show("imported", done, 100_000)  # too soon
    line.show("verified", 7, 7)
    line.clear()
    assert terminal.getvalue().replace("\r", "\n").split("\n") == [
        "",
        "imported 1,000 of 100,000 rows (1 %)",
        "imported 1,000 of 100,000 rows (1 %)",
        "verified 7 of 7 rows (100 %)        ",
        "verified 7 of 7 rows (100 %)",
        " " * 28,
        "",
    ]
