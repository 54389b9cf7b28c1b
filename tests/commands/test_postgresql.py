"""Tests of commands on a registry in PostgreSQL."""

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from brewos_relay.registry.database import Database
from brewos_relay.registry.migrations import HEAD
from support.postgresql import PostgreSQL, find_programs
from support.process import SECRET, environment

from .conftest import Run, assert_refused

pytestmark = pytest.mark.postgresql

ID = "BRW-0000001A"


@pytest.fixture
def url(postgresql: PostgreSQL, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put the URL of an empty database into the environment."""
    with postgresql.new_database(empty=True) as url:
        monkeypatch.setenv("BREWOS_RELAY_DATABASE_URL", url)
        monkeypatch.setenv("JWT_SECRET", SECRET)
        monkeypatch.setenv("PORT", "0")
        yield url


def test_tables_are_upgraded_on_postgresql(run: Run, url: str) -> None:
    assert_refused(run("device", "list"), 1, "its tables are missing", "`brewos-relay db upgrade`")
    outcome = run("db", "status")
    assert outcome.code == 1
    assert outcome.out.endswith("version   none\n")
    assert "hunter2" not in outcome.out
    assert run("db", "upgrade").err == f"Upgraded the tables to version {HEAD}.\n"
    assert run("db", "upgrade").err == f"The tables are up to date, at version {HEAD}.\n"
    outcome = run("db", "status")
    assert (outcome.code, outcome.err) == (0, "")
    assert run("device", "add", ID).code == 0
    assert ID in run("device", "list").out
    assert_refused(run("device", "add", ID), 1, f"{ID}")


def examine(run: Run) -> str:
    lines = run("doctor").out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.split()[1] == "database")
    return " ".join(" ".join(lines[place : place + 2]).split())


def test_doctor_checks_a_postgresql_registry(run: Run, url: str, postgresql: PostgreSQL) -> None:
    found = examine(run)
    assert found.startswith("failed database postgresql+psycopg://relay:***@/")
    assert "has none of the registry's tables → run `brewos-relay db upgrade` to create them" in found
    run("db", "upgrade")
    found = examine(run)
    assert found.startswith("ok database postgresql+psycopg://relay:***@/")
    assert f"version {HEAD}, can be written warning accounts there is no account yet" in found
    postgresql.stop()
    try:
        found = examine(run)
    finally:
        postgresql.start()
    assert found.startswith("failed database")
    assert "connection to server on socket" in found
    assert "hunter2" not in found


def test_advice_of_backup_and_restore_works(run: Run, url: str) -> None:
    programs = find_programs()
    if programs is None or not (programs / "pg_dump").exists():
        pytest.skip("there is no pg_dump")

    def advice(command: str) -> str:
        outcome = run("db", command, "a copy.dump")
        assert_refused(outcome, 1, "the registry is in PostgreSQL: use pg_")
        assert "hunter2" not in outcome.err
        return outcome.err.rpartition(": ")[2]

    def follow(advice: str) -> None:
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PGPASSWORD": "hunter2"}
        subprocess.run(advice, shell=True, check=True, env=environment, timeout=30)

    run("db", "upgrade")
    assert run("device", "add", ID).code == 0
    follow(advice("backup"))
    assert Path("a copy.dump").exists()
    assert run("device", "remove", ID).code == 0
    follow(advice("restore"))
    assert ID in run("device", "list").out
    with Database.open(url) as database, database.reading() as db:
        assert db.execute(text("SELECT count(*) FROM devices")).scalar_one() == 1


def test_move_from_sqlite_works_word_for_word(postgresql: PostgreSQL, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/move-to-postgresql.md").read_text("utf-8")
    blocks = [textwrap.dedent(block) for block in re.findall(r"```console\n(.*?)```", page, re.S)]
    assert len(blocks) == 6
    there = "postgresql://relay:PASSWORD@db.example.org/relay"
    tools = "".join(f"{name}() {{ :; }}\n" for name in ("systemctl", "createdb", "python3"))
    relay = shlex.quote(sys.executable) + " -m brewos_relay"
    tools += f'set -eu\nbrewos-relay() {{ {relay} "$@"; }}\n'
    listing = "brewos-relay device list > {}\n"
    with postgresql.new_database(empty=True) as url:
        script = [
            tools,
            f"brewos-relay device add {ID}\n",
            "brewos-relay device give BRW-0000001A --user ada\n",
            listing.format("before"),
            *(block.replace(there, url) for block in blocks[:5]),
            listing.format("moved"),
            blocks[5],
            listing.format("back"),
        ]
        ran = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=tmp_path,
            env=environment(JWT_SECRET=SECRET),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 0, ran.stderr
    assert (
        "Imported 1 device and 0 accounts, 2 rows in all into postgresql+psycopg://relay:***@" in ran.stderr
    )
    assert f"into {tmp_path / 'data' / 'brewos-relay.db'}" in ran.stderr
    before, moved, back = ((tmp_path / name).read_text() for name in ("before", "moved", "back"))
    assert before == moved == back
    assert "ada" in before
