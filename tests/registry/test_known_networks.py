from sqlalchemy import Connection, func, select

from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.known_networks import (
    KEPT_MS,
    KEPT_PER_ACCOUNT,
    RECORDED_EVERY_MS,
    is_due,
    is_known,
    record_network,
    seen_at,
)
from brewos_relay.registry.schema import known_networks
from support.registry import NOW_MS, prune, remove_user

HOME = "2001:db8:1:2::"


def account(db: Connection, email: str = "ada@example.org") -> str:
    return add_user(db, email=email, name=None, now_ms=NOW_MS).id


def count(db: Connection) -> int:
    return db.scalar(select(func.count()).select_from(known_networks)) or 0


def test_a_network_is_known_from_the_first_sign_in_on(db: Connection) -> None:
    ada, eve = account(db), account(db, "eve@example.org")
    assert seen_at(db, ada, HOME) is None
    record_network(db, ada, HOME, now_ms=NOW_MS)
    record_network(db, ada, HOME, now_ms=NOW_MS + 5)
    assert seen_at(db, ada, HOME) == NOW_MS + 5
    assert seen_at(db, eve, HOME) is None
    assert seen_at(db, ada, "192.0.2.1") is None


def test_each_account_keeps_the_networks_that_were_used_last(db: Connection) -> None:
    ada, eve = account(db), account(db, "eve@example.org")
    record_network(db, ada, HOME, now_ms=NOW_MS)
    for number in range(2 * KEPT_PER_ACCOUNT):
        record_network(db, eve, f"192.0.2.{number}", now_ms=NOW_MS + number)
    assert seen_at(db, ada, HOME) == NOW_MS, "another account pushes out nothing"
    assert count(db) == 1 + KEPT_PER_ACCOUNT
    assert seen_at(db, eve, f"192.0.2.{KEPT_PER_ACCOUNT - 1}") is None
    assert seen_at(db, eve, f"192.0.2.{KEPT_PER_ACCOUNT}") is not None


def test_a_network_is_known_for_a_while_and_recorded_once_a_day() -> None:
    assert not is_known(None, now_ms=NOW_MS)
    assert is_known(NOW_MS, now_ms=NOW_MS + KEPT_MS - 1)
    assert not is_known(NOW_MS, now_ms=NOW_MS + KEPT_MS)
    assert is_due(None, now_ms=NOW_MS)
    assert not is_due(NOW_MS, now_ms=NOW_MS + RECORDED_EVERY_MS - 1)
    assert is_due(NOW_MS, now_ms=NOW_MS + RECORDED_EVERY_MS)


def test_known_networks_are_deleted_with_their_account(db: Connection) -> None:
    ada = account(db)
    record_network(db, ada, HOME, now_ms=NOW_MS)
    remove_user(db, ada, now_ms=NOW_MS)
    record_network(db, ada, HOME, now_ms=NOW_MS)
    assert count(db) == 0


def test_unused_networks_are_forgotten(db: Connection) -> None:
    ada = account(db)
    record_network(db, ada, HOME, now_ms=NOW_MS)
    record_network(db, ada, "192.0.2.1", now_ms=NOW_MS + 1)
    prune(db, now_ms=NOW_MS + KEPT_MS)
    assert count(db) == 1
