"""How many machines an account may have."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Connection

from brewos_relay.errors import QuotaReached
from brewos_relay.registry.access import access_of, give
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.quotas import check_quota
from brewos_relay.registry.records import NewDevice
from support.registry_files import NOW_MS, hash_of

IDS = [f"BRW-0000000{number}" for number in range(6)]


def add(db: Connection) -> None:
    add_devices(db, [NewDevice(id=id_, key_hash=hash_of(id_)) for id_ in IDS], now_ms=NOW_MS)


def test_quota_refuses_the_machine_beyond_the_last(db: Connection) -> None:
    add(db)
    for id_ in IDS[:2]:
        check_quota(db, "ada", limit=2, now_ms=NOW_MS, device_id=id_)
        give(db, id_, "ada", role="owner", now_ms=NOW_MS)
    with pytest.raises(QuotaReached, match="may have 2 machines"):
        check_quota(db, "ada", limit=2, now_ms=NOW_MS, device_id=IDS[2])
    check_quota(db, "bob", limit=2, now_ms=NOW_MS)


def test_quota_counts_every_role_and_no_access_that_has_ended(db: Connection) -> None:
    add(db)
    give(db, IDS[0], "ada", role="viewer", now_ms=NOW_MS)
    give(db, IDS[1], "ada", role="member", until_ms=NOW_MS + 1, now_ms=NOW_MS)
    with pytest.raises(QuotaReached):
        check_quota(db, "ada", limit=2, now_ms=NOW_MS)
    check_quota(db, "ada", limit=2, now_ms=NOW_MS + 1)


def test_machine_that_a_user_has_already_passes_a_full_quota(db: Connection) -> None:
    add(db)
    give(db, IDS[0], "ada", role="member", now_ms=NOW_MS)
    check_quota(db, "ada", limit=1, now_ms=NOW_MS, device_id=IDS[0])


def test_two_transactions_cannot_both_take_the_last_place(database: Database) -> None:
    with database.writing() as db:
        add(db)
        user_id = add_user(db, email="ada@example.com", name=None, now_ms=NOW_MS).id
    together = Barrier(len(IDS))

    def get(id_: str) -> bool:
        together.wait(timeout=10)
        try:
            with database.writing() as db:
                check_quota(db, user_id, limit=2, now_ms=NOW_MS, device_id=id_)
                give(db, id_, user_id, role="owner", now_ms=NOW_MS)
        except QuotaReached:
            return False
        return True

    with ThreadPoolExecutor(len(IDS)) as threads:
        assert sum(threads.map(get, IDS)) == 2
    with database.reading() as db:
        assert len(access_of(db, [(user_id, id_) for id_ in IDS], now_ms=NOW_MS)) == 2
