"""The pairing window, new ids of a network, and machines of an account."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Final

import pytest
from sqlalchemy import Connection

from brewos_relay.errors import PairingClosed, QuotaReached, TooManyNewDevices
from brewos_relay.registry.access import access_of, give
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.pairing import register_pairing
from brewos_relay.registry.pairing_limits import (
    COUNTED_MS,
    WINDOW_AT_MOST_MS,
    NewDeviceRules,
    PairingMode,
    check_quota,
    close_window,
    count_new_id,
    open_window,
    window_open_until,
)
from brewos_relay.registry.records import NewDevice
from support.registry import prune
from support.registry_files import MINUTE_MS, NOW_MS, hash_of

ID: Final = "BRW-0000001A"


def register(
    db: Connection,
    number: int = 1,
    *,
    key: str = "its",
    mode: PairingMode = "open",
    per_network: int | None = None,
    networks: tuple[str, ...] = ("2001:db8::",),
    now_ms: int = NOW_MS,
) -> str:
    return register_pairing(
        db,
        device_id=f"BRW-{number:08X}",
        key_hash=hash_of(key),
        token_hash=hash_of(f"token of {key}"),
        now_ms=now_ms,
        expires_at_ms=now_ms + 10 * MINUTE_MS,
        networks=networks,
        rules=NewDeviceRules(mode=mode, per_network=per_network),
    )


# The window


def test_window_opens_for_a_time_and_closes(db: Connection) -> None:
    assert window_open_until(db, now_ms=NOW_MS) is None
    assert open_window(db, now_ms=NOW_MS, for_ms=MINUTE_MS) == NOW_MS + MINUTE_MS
    assert window_open_until(db, now_ms=NOW_MS + MINUTE_MS - 1) == NOW_MS + MINUTE_MS
    assert window_open_until(db, now_ms=NOW_MS + MINUTE_MS) is None
    assert open_window(db, now_ms=NOW_MS, for_ms=2 * MINUTE_MS) == NOW_MS + 2 * MINUTE_MS
    close_window(db)
    assert window_open_until(db, now_ms=NOW_MS) is None


@pytest.mark.parametrize("for_ms", [0, -1, WINDOW_AT_MOST_MS + 1])
def test_window_opens_for_a_day_at_most(db: Connection, for_ms: int) -> None:
    with pytest.raises(ValueError, match="a day at most"):
        open_window(db, now_ms=NOW_MS, for_ms=for_ms)


@pytest.mark.parametrize("mode", ["window", "closed"])
def test_unknown_id_is_refused_while_pairing_is_closed(db: Connection, mode: PairingMode) -> None:
    with pytest.raises(PairingClosed):
        register(db, mode=mode)
    assert find_devices(db, ["BRW-00000001"]) == []


def test_unknown_id_registers_while_the_window_is_open(db: Connection) -> None:
    open_window(db, now_ms=NOW_MS, for_ms=MINUTE_MS)
    assert register(db, 1, mode="window") == "stored"
    with pytest.raises(PairingClosed):
        register(db, 2, mode="closed")
    with pytest.raises(PairingClosed):
        register(db, 2, mode="window", now_ms=NOW_MS + MINUTE_MS)


@pytest.mark.parametrize("mode", ["window", "closed"])
def test_known_key_registers_in_every_mode(db: Connection, mode: PairingMode) -> None:
    register(db)
    assert register(db, mode=mode) == "refreshed"
    give(db, "BRW-00000001", "olga", role="owner", now_ms=NOW_MS)
    assert register(db, mode=mode) == "refreshed"


@pytest.mark.parametrize("mode", ["window", "closed"])
def test_reset_machine_of_an_owner_registers_in_every_mode(db: Connection, mode: PairingMode) -> None:
    register(db)
    give(db, "BRW-00000001", "olga", role="owner", now_ms=NOW_MS)
    assert register(db, key="new", mode=mode) == "pending"


@pytest.mark.parametrize("mode", ["window", "closed"])
def test_unknown_key_cannot_replace_that_of_a_device_without_users(db: Connection, mode: PairingMode) -> None:
    register(db)
    with pytest.raises(PairingClosed):
        register(db, key="stranger's", mode=mode)
    [device] = find_devices(db, ["BRW-00000001"])
    assert device.key_hash == hash_of("its")


# New ids


def test_number_of_new_ids_of_a_network_a_day_is_limited(db: Connection) -> None:
    for number in range(3):
        assert register(db, number, per_network=3) == "stored"
    with pytest.raises(TooManyNewDevices) as caught:
        register(db, 3, per_network=3, now_ms=NOW_MS + 1000)
    assert caught.value.retry_s == COUNTED_MS // 1000 - 1
    assert "200 " not in str(caught.value)
    # Known ids are not counted, nor is another network.
    assert register(db, 2, per_network=3) == "refreshed"
    assert register(db, 2, key="new", per_network=3) == "replaced"
    assert register(db, 3, per_network=3, networks=("192.0.2.1",)) == "stored"
    assert register(db, 4, per_network=3, now_ms=NOW_MS + COUNTED_MS) == "stored"


def test_wider_networks_have_twice_the_quota(db: Connection) -> None:
    for number in range(4):
        register(db, number, per_network=2, networks=("/56", f"/64 {number}"))
    with pytest.raises(TooManyNewDevices):
        register(db, 4, per_network=2, networks=("/56", "/64 4"))
    assert register(db, 4, per_network=2, networks=("another /56", "/64 4")) == "stored"


def test_counts_are_pruned_after_a_day(db: Connection) -> None:
    count_new_id(db, ("a",), per_network=1, now_ms=NOW_MS)
    prune(db, now_ms=NOW_MS + COUNTED_MS - 1)
    with pytest.raises(TooManyNewDevices):
        count_new_id(db, ("a",), per_network=1, now_ms=NOW_MS + COUNTED_MS - 1)


def test_registrations_at_once_do_not_exceed_the_quota(database: Database) -> None:
    together = Barrier(6)

    def go(number: int) -> bool:
        together.wait(timeout=10)
        try:
            with database.writing() as db:
                register(db, number, per_network=2)
        except TooManyNewDevices:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(go, range(6))) == 2


# Machines of an account

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
