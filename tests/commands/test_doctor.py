import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from sqlalchemy import delete, insert

from brewos_relay.registry.accounts import add_user, set_admin
from brewos_relay.registry.database import Database
from brewos_relay.registry.schema import invites, users
from support.process import SECRET, run_command, serve_process

from .conftest import Run

OTHER_SECRET = "another-secret-" + "x" * 32


def states(out: str) -> dict[str, tuple[str, str]]:
    return {each["name"].split(" ")[0]: (each["state"], each["text"]) for each in json.loads(out)["findings"]}


async def test_healthy_server_has_no_problems(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with serve_process(tmp_path, BREWOS_RELAY_DRAIN_S=0.1) as server:
            url = f"http://127.0.0.1:{server.address[1]}"
            url_of_file = f"sqlite:///{tmp_path}/data/brewos-relay.db"
            with Database.open(url_of_file) as database, database.writing() as writing:
                ada = add_user(writing, email="ada@example.org", name=None, now_ms=1)
                set_admin(writing, ada.id, True)
            ran = await run_command(
                tmp_path, "doctor", "--json", "--url", url, "--clock", url, PORT=server.address[1]
            )
            found = states(ran.stdout.decode())
            assert ran.returncode == 0, ran
            assert {state for state, _ in found.values()} == {"ok"}
            assert found["accounts"] == ("ok", "there is an administrator")
            assert "served by a relay" in found["port"][1]
            assert "device to app" in found["canary"][1]
            assert "agrees with" in found["clock"][1]
            # Another secret than the server's is refused, and no device is left behind.
            ran = await run_command(tmp_path, "doctor", "--url", url, PORT=0, JWT_SECRET=OTHER_SECRET)
            assert ran.returncode == 1
            assert b"set JWT_SECRET to that of the server" in ran.stdout
            assert OTHER_SECRET.encode() not in ran.stdout + ran.stderr
        with closing(sqlite3.connect(tmp_path / "data" / "brewos-relay.db")) as db, db:
            assert db.execute("SELECT count(*) FROM devices").fetchone() == (0,)


def test_missing_administrator_is_a_warning(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setattr("brewos_relay.doctor.canary.send_canary", lambda *_: [])
    with Database.open("sqlite:///data/brewos-relay.db") as database:
        found = json.loads(run("doctor", "--json").out)["findings"]
        (accounts,) = (each for each in found if each["name"] == "accounts")
        assert (accounts["state"], accounts["text"]) == ("warning", "there is no account yet")
        assert f"user invite EMAIL --data-dir {tmp_path}/data" in accounts["advice"]
        assert run("user", "invite", "bob@example.org").code == 0
        outcome = run("doctor")
        assert "an invite for bob@example.org is open until" in outcome.out
        assert "user invite bob@example.org" in outcome.out
        with database.writing() as db:
            db.execute(delete(invites))
            ada = add_user(db, email="ada@example.org", name=None, now_ms=1)
        outcome = run("doctor")
        assert "no account is an administrator's" in outcome.out
        assert "user admin EMAIL" in outcome.out
        with database.writing() as db:
            set_admin(db, ada.id, True)
            row = {"email": "Ada@example.org", "email_key": "ada@example.org x", "is_admin": False}
            db.execute(insert(users), {**row, "id": "x", "created_at_ms": 1})
        assert "Ada@example.org: equal to another account's address" in run("doctor").out


def test_settings_are_shown_with_their_sources(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("BREWOS_RELAY_DATABASE_URL", "postgresql://relay:pw-in-url@127.0.0.1:1/relay")
    (tmp_path / ".env").write_text("PORT=0\n")
    outcome = run("doctor", "--settings", "--data-dir", "elsewhere")
    lines = {line.split(" ")[0]: " ".join(line.split()) for line in outcome.out.splitlines() if line}
    assert lines["JWT_SECRET"] == f"JWT_SECRET set ({len(SECRET)} bytes) the environment"
    assert lines["PORT"] == "PORT 0 .env"
    assert lines["DATA_DIR"] == "DATA_DIR elsewhere the command line"
    assert lines["BREWOS_RELAY_DRAIN_S"].endswith("default")
    assert SECRET not in outcome.out
    assert "pw-in-url" not in outcome.out + outcome.err
    assert outcome.code == 1, "there is no such database"


def test_unreadable_registry_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> bool:
        if path.suffix != ".db":
            return False
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setattr(Path, "exists", refuse)
    outcome = run("doctor", "--json", "--data-dir", "/var/lib/others")
    assert outcome.code == 1
    assert states(outcome.out)["database"] == ("failed", "/var/lib/others/brewos-relay.db: Permission denied")


def test_invalid_setting_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "70000")
    outcome = run("doctor")
    assert outcome.code == 1
    assert "failed   settings  PORT is '70000'" in outcome.out


def test_misspelt_setting_is_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("PORT", "0")
    monkeypatch.setenv("BREWOS_RELAY_PROXY_PROTOCOLL", "true")
    outcome = run("doctor", "--json")
    assert outcome.code == 0
    state, text = states(outcome.out)["unknown"]
    assert state == "warning"
    assert "did you mean BREWOS_RELAY_PROXY_PROTOCOL?" in text


def test_checks_create_no_files(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", SECRET)
    monkeypatch.setenv("PORT", "0")
    outcome = run("doctor")
    assert outcome.code == 0
    assert "warning  database" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_expired_certificate_fails(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    from support.certificates import write_certificate

    for ends_days, state in ((-0.5, "failed"), (5, "warning"), (80, "ok")):
        files = write_certificate(tmp_path, ends=datetime.timedelta(days=ends_days))
        monkeypatch.setenv("JWT_SECRET", SECRET)
        monkeypatch.setenv("PORT", "0")
        monkeypatch.setenv("BREWOS_RELAY_TLS_CERT", str(files.cert))
        monkeypatch.setenv("BREWOS_RELAY_TLS_KEY", str(files.key))
        assert states(run("doctor", "--json").out)["certificate"][0] == state
