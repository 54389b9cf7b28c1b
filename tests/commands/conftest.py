"""Run `brewos-relay` in this process, in an empty directory and with an empty environment."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from brewos_relay.cli import main
from brewos_relay.registry.database import Database
from brewos_relay.registry.schema import users
from brewos_relay.settings import variable_names
from support.quick_registries import quick_registries as quick_registries

SECRET = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Outcome:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str


SHORT_NAMES = {
    variable_names(name)[0]
    for name in ("port", "public_url", "jwt_secret", "google_client_ids", "data_dir", "web_dist_path")
}

Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line and returns its outcome."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("BREWOS_RELAY_") or name in SHORT_NAMES:
            monkeypatch.delenv(name)

    def run(*args: str) -> Outcome:
        with pytest.raises(SystemExit) as exited:
            main(args)
        captured = capsys.readouterr()
        assert isinstance(exited.value.code, int)
        return Outcome(exited.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch, run: Run) -> str:
    """Put a valid JWT_SECRET into the environment."""
    monkeypatch.setenv("JWT_SECRET", SECRET)
    return SECRET


def assert_refused(outcome: Outcome, code: int, *parts: str) -> None:
    """Check the exit code, and that the only output is one line on stderr with all of these parts."""
    assert outcome.code == code
    assert outcome.out == ""
    assert outcome.err.startswith("brewos-relay: ")
    assert outcome.err.endswith("\n")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert part in outcome.err


@contextmanager
def opened() -> Iterator[Connection]:
    """Open a connection to the registry of the directory, for reading and writing."""
    with Database.open("sqlite:///data/brewos-relay.db") as database, database.writing() as db:
        yield db


def add_account(user_id: str, email: str, *, is_admin: bool = False) -> None:
    """Add an account directly to the registry."""
    with opened() as db:
        row = {"id": user_id, "email": email, "is_admin": is_admin, "created_at_ms": 1_700_000_000_123}
        row["email_key"] = email
        db.execute(insert(users), row)


StandIn = Callable[..., list[tuple[tuple[Any, ...], dict[str, Any]]]]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Return a function that replaces a function of a module, and returns the list of its calls."""

    def stand_in(
        module: str, name: str, *, result: object = None, problem: BaseException | None = None
    ) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def called(*args: Any, **kwargs: Any) -> object:
            calls.append((args, kwargs))
            if problem is not None:
                raise problem
            return result

        replacement = ModuleType(module)
        setattr(replacement, name, called)
        monkeypatch.setitem(sys.modules, module, replacement)
        return calls

    return stand_in
