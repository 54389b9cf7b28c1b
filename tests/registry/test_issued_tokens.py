import pytest
from sqlalchemy import Connection

from brewos_relay.registry.issued_tokens import (
    add_token,
    all_tokens,
    lock_token,
    revoke_token,
    revoked_tokens,
)
from brewos_relay.registry.records import StoredToken
from support.change_rows import read_changes
from support.registry import NOW_MS, prune


def token(id_: str, *, expires_at_ms: int = NOW_MS + 1000, created_at_ms: int = NOW_MS) -> StoredToken:
    return StoredToken(
        id=id_,
        name="wall",
        user_id="ada",
        role="viewer",
        devices=frozenset({"BRW-00000002", "BRW-00000001"}),
        created_at_ms=created_at_ms,
        expires_at_ms=expires_at_ms,
    )


def test_tokens_that_have_not_expired_are_listed_the_newest_first(db: Connection) -> None:
    old, new = token("old", created_at_ms=1), token("new")
    for each in (old, new, token("expired", expires_at_ms=NOW_MS)):
        add_token(db, each)
    assert all_tokens(db, now_ms=NOW_MS) == [new, old]


def test_a_token_for_all_devices_and_one_without_a_name(db: Connection) -> None:
    named = StoredToken(
        id="a", name=None, user_id="ada", role="owner", devices="*", created_at_ms=1, expires_at_ms=NOW_MS + 1
    )
    add_token(db, named)
    assert all_tokens(db, now_ms=NOW_MS) == [named]


def test_a_revoked_token_is_denied_and_servers_are_told(db: Connection) -> None:
    for each in (token("one"), token("two")):
        add_token(db, each)
    assert revoke_token(db, "one", now_ms=NOW_MS)
    assert revoked_tokens(db, ["one", "two", "unknown"]) == revoked_tokens(db) == {"one"}
    assert not lock_token(db, "one")
    assert [(change.kind, change.token_id) for change in read_changes(db, 0)] == [("token_revoked", "one")]
    listed = {each.id: each.revoked_at_ms for each in all_tokens(db, now_ms=NOW_MS)}
    assert listed == {"one": NOW_MS, "two": None}


def test_an_id_that_the_registry_has_never_seen_is_not_denied(db: Connection) -> None:
    assert lock_token(db, "of another service")
    assert revoked_tokens(db, ["of another service"]) == set()


@pytest.mark.parametrize("id_", ["unknown", "revoked", "expired"])
def test_there_is_nothing_to_revoke(db: Connection, id_: str) -> None:
    add_token(db, token("revoked"))
    add_token(db, token("expired", expires_at_ms=NOW_MS))
    revoke_token(db, "revoked", now_ms=NOW_MS)
    changes = len(read_changes(db, 0))
    assert not revoke_token(db, id_, now_ms=NOW_MS)
    assert len(read_changes(db, 0)) == changes


def test_the_deny_list_forgets_a_token_that_would_have_expired(db: Connection) -> None:
    add_token(db, token("one"))
    revoke_token(db, "one", now_ms=NOW_MS)
    prune(db, now_ms=NOW_MS + 999)
    assert revoked_tokens(db) == {"one"}
    prune(db, now_ms=NOW_MS + 1000)
    assert revoked_tokens(db) == set()
