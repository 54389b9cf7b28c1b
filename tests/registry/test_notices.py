"""What accounts are told about machines."""

import pytest
from sqlalchemy import Connection, delete, insert

from brewos_relay.registry.notices import (
    NOTICES_KEPT,
    NOTICES_KEPT_MS,
    add_notices,
    dismiss_notices,
    notices_of,
)
from brewos_relay.registry.schema import users
from support.registry import prune
from support.registry_files import NOW_MS

ID = "BRW-0000001A"


@pytest.fixture(autouse=True)
def accounts(db: Connection) -> None:
    for name in ("ada", "bob"):
        email = f"{name}@example.com"
        row = {"id": name, "email": email, "email_key": email, "is_admin": False}
        db.execute(insert(users), {**row, "created_at_ms": NOW_MS})


def test_notices_come_newest_first_and_are_dismissed(db: Connection) -> None:
    add_notices(db, ["ada", "bob"], "released", device_id=ID, now_ms=NOW_MS)
    add_notices(db, ["ada"], "claim_expired", device_id=ID, now_ms=NOW_MS + 1)
    newest, oldest = notices_of(db, "ada")
    assert (newest.kind, newest.at_ms, newest.device_id) == ("claim_expired", NOW_MS + 1, ID)
    dismiss_notices(db, "ada", up_to_id=oldest.id)
    assert notices_of(db, "ada") == [newest]
    assert [notice.kind for notice in notices_of(db, "bob")] == ["released"]


def test_account_keeps_the_newest_notices_for_a_time(db: Connection) -> None:
    for number in range(NOTICES_KEPT + 5):
        add_notices(db, ["ada"], "released", device_id=ID, now_ms=NOW_MS + number)
    kept = notices_of(db, "ada")
    assert len(kept) == NOTICES_KEPT
    assert kept[0].at_ms == NOW_MS + NOTICES_KEPT + 4
    prune(db, now_ms=kept[0].at_ms + NOTICES_KEPT_MS)
    assert notices_of(db, "ada") == []


def test_user_without_an_account_gets_no_notice(db: Connection) -> None:
    add_notices(db, ["token's"], "released", device_id=ID, now_ms=NOW_MS)
    assert notices_of(db, "token's") == []


def test_notices_go_with_their_account(db: Connection) -> None:
    add_notices(db, ["ada"], "released", device_id=ID, now_ms=NOW_MS)
    db.execute(delete(users).where(users.c.id == "ada"))
    assert notices_of(db, "ada") == []
