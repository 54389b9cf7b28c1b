import json

import pytest

from brewos_relay.registry.access import users_of
from brewos_relay.registry.pairing_limits import window_open_until

from .conftest import Run, assert_refused, opened

ID = "BRW-0000000A"


@pytest.fixture(autouse=True)
def machine(run: Run) -> None:
    """Register a device that ada owns."""
    run("device", "add", ID, "--user", "ada")


def is_open() -> bool:
    with opened() as db:
        return window_open_until(db, now_ms=0) is not None


def test_window_is_opened_and_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREWOS_RELAY_PAIRING", "window")
    assert run("pairing", "status").out == "Pairing is closed (BREWOS_RELAY_PAIRING=window).\n"
    outcome = run("pairing", "open", "--for", "10m")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith("Pairing is open until 20")
    assert is_open()
    shown = run("pairing", "status").out
    assert shown.startswith("Pairing is open until 20")
    told = json.loads(run("pairing", "status", "--json").out)
    assert (told["mode"], told["isOpen"], told["openUntil"] in shown) == ("window", True, True)
    assert run("pairing", "close").err == "Pairing is closed.\n"
    assert not is_open()


def test_open_and_close_warn_if_the_mode_is_open(run: Run) -> None:
    assert "pairing stays open after that" in run("pairing", "open").err
    assert run("pairing", "status").out == "Pairing is open (BREWOS_RELAY_PAIRING=open).\n"
    assert "devices can still register" in run("pairing", "close").err


def test_window_cannot_be_opened_where_pairing_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREWOS_RELAY_PAIRING", "closed")
    assert_refused(run("pairing", "open"), 1, "BREWOS_RELAY_PAIRING is closed")
    assert not is_open()


@pytest.mark.parametrize("duration", ["25h", "2d", "10", "0m"])
def test_window_opens_for_a_day_at_most(run: Run, duration: str) -> None:
    assert_refused(run("pairing", "open", "--for", duration), 2)
    assert not is_open()


def test_released_device_has_no_users(run: Run) -> None:
    run("device", "give", ID, "--user", "eve", "--role", "member")
    outcome = run("device", "release", ID.lower())
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"Released {ID}: 2 users had it, and it can be paired again.\n"
    with opened() as db:
        assert users_of(db, ID, now_ms=0) == []
    assert_refused(run("device", "release", "BRW-0000000B"), 1, "is not registered")
