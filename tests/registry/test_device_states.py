"""The last states of machines: whose are stored, who gets them, and when they go."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from sqlalchemy import Connection, func, select

from brewos_relay.registry.access import give, leave, release
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_keys import replace_key, replace_unowned_key
from brewos_relay.registry.device_states import (
    AHEAD_US,
    STATE_BYTES_AT_MOST,
    find_states,
    forget_state,
    save_states,
)
from brewos_relay.registry.devices import add_devices, lock_device, remove_device
from brewos_relay.registry.housekeeping import STATES_KEPT_MS, expired
from brewos_relay.registry.pairing import pair_device, register_pairing
from brewos_relay.registry.pairing_proof import release_device
from brewos_relay.registry.records import StoredState
from brewos_relay.registry.schema import device_states
from brewos_relay.registry.store import open_store
from brewos_relay.vocabulary import now_ms
from support.registry import NOW_MS, device_id, new_device, run_all_steps

ONE, TWO = device_id(1), device_id(2)
HASH: Final = bytes([7]) * 32
LATER_MS: Final = NOW_MS + 60_000


def state(of: str = ONE, *, payload: bytes = b"{}", at_ms: int = NOW_MS, since_us: int = 0) -> StoredState:
    return StoredState(device_id=of, payload=payload, is_text=True, at_ms=at_ms, since_us=since_us)


def stored(db: Connection) -> int:
    return db.execute(select(func.count()).select_from(device_states)).scalar_one()


def found(db: Connection, *ids: str, after_ms: int = 0) -> dict[str, StoredState]:
    return find_states(db, ids, after_ms=after_ms)


def register(db: Connection, of: str = ONE, *, token: bytes = HASH) -> None:
    register_pairing(
        db,
        device_id=of,
        key_hash=HASH,
        token_hash=token,
        now_ms=NOW_MS,
        expires_at_ms=NOW_MS + 600_000,
    )


def test_the_latest_state_is_found_byte_for_byte(db: Connection) -> None:
    add_devices(db, [new_device(number, "ada") for number in range(1, 4)], now_ms=NOW_MS)
    binary = StoredState(device_id=TWO, payload=bytes(range(256)), is_text=False, at_ms=NOW_MS + 5)
    save_states(db, [state(payload=b"old"), binary])
    save_states(db, [state(payload=b"new", at_ms=NOW_MS + 1)])
    save_states(db, [])
    assert found(db, ONE, TWO, device_id(3)) == {ONE: state(payload=b"new", at_ms=NOW_MS + 1), TWO: binary}
    assert list(found(db, ONE, TWO, after_ms=NOW_MS + 1)) == [TWO]
    assert found(db) == {}
    forget_state(db, ONE)
    assert list(found(db, ONE, TWO)) == [TWO]


def test_many_states_at_once(db: Connection) -> None:
    numbers = range(1, 1102)
    add_devices(db, [new_device(number, "ada") for number in numbers], now_ms=NOW_MS)
    save_states(db, [state(device_id(number)) for number in numbers])
    assert len(found(db, *(device_id(number) for number in numbers))) == len(numbers)


def test_a_state_that_is_too_large_is_not_stored(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2, "ada")], now_ms=NOW_MS)
    most = b"x" * STATE_BYTES_AT_MOST
    save_states(db, [state(payload=most), state(TWO, payload=most + b"x")])
    assert list(found(db, ONE, TWO)) == [ONE]


def test_unowned_devices_have_no_stored_state(db: Connection) -> None:
    add_devices(db, [new_device(1)], now_ms=NOW_MS)  # by hand
    register(db, TWO)
    save_states(db, [state(), state(TWO), state(device_id(3))])
    assert stored(db) == 1
    assert list(found(db, ONE, TWO)) == [ONE]


FORGETTING: dict[str, Callable[[Connection], Any]] = {
    "the device is removed": lambda db: remove_device(db, ONE, now_ms=LATER_MS),
    "its last owner leaves": lambda db: leave(db, ONE, "ada", now_ms=LATER_MS),
    "its owner takes it from everyone": lambda db: release(db, ONE, now_ms=LATER_MS),
    "an administrator releases it": lambda db: release_device(db, ONE, now_ms=LATER_MS),
    "its key changes": lambda db: replace_key(db, lock_device(db, ONE), HASH, user_id="ada", now_ms=LATER_MS),
    "it registers another key": lambda db: replace_unowned_key(
        db, lock_device(db, ONE), HASH, now_ms=LATER_MS
    ),
}


@pytest.mark.parametrize("forget", FORGETTING.values(), ids=FORGETTING)
def test_state_is_deleted_when(db: Connection, forget: Callable[[Connection], Any]) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2, "ada")], now_ms=NOW_MS)
    save_states(db, [state(), state(TWO)])
    forget(db)
    assert list(found(db, ONE, TWO)) == [TWO]
    assert stored(db) == 1


def test_a_new_owner_does_not_see_the_state_of_the_owner_before(db: Connection) -> None:
    register(db)
    assert pair_device(db, device_id=ONE, token_hash=HASH, user_id="ada", name=None, now_ms=NOW_MS)
    save_states(db, [state(at_ms=NOW_MS + 1)])
    leave(db, ONE, "ada", now_ms=NOW_MS + 2)
    save_states(db, [state(at_ms=NOW_MS + 1)])  # stored late
    assert stored(db) == 0
    register(db, token=b"2" * 32)
    assert pair_device(db, device_id=ONE, token_hash=b"2" * 32, user_id="bob", name=None, now_ms=NOW_MS + 3)
    save_states(db, [state(at_ms=NOW_MS + 1)])  # or for longer
    assert found(db, ONE) == {}
    save_states(db, [state(at_ms=NOW_MS + 4)])
    assert list(found(db, ONE)) == [ONE]


def test_device_from_the_command_line_forgets_its_state_when_paired(db: Connection) -> None:
    add_devices(db, [new_device(1, key=7)], now_ms=NOW_MS)
    save_states(db, [state(at_ms=NOW_MS + 100)])
    register(db)
    assert pair_device(db, device_id=ONE, token_hash=HASH, user_id="bob", name=None, now_ms=NOW_MS + 50)
    assert stored(db) == 0


def test_another_user_keeps_the_state_of_the_device(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=NOW_MS)
    save_states(db, [state()])
    give(db, ONE, "bob", role="member", now_ms=LATER_MS)
    assert list(found(db, ONE)) == [ONE]


def test_old_states_are_pruned(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2, "ada")], now_ms=1)
    save_states(db, [state(at_ms=NOW_MS - STATES_KEPT_MS), state(TWO, at_ms=NOW_MS - STATES_KEPT_MS + 1)])
    run_all_steps(db, expired(now_ms=NOW_MS))
    assert (list(found(db, ONE, TWO)), stored(db)) == ([TWO], 1)
    run_all_steps(db, expired(now_ms=NOW_MS, states_kept_ms=1000))
    assert stored(db) == 0


def test_late_save_does_not_replace_the_state_of_a_later_connection(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2, "ada")], now_ms=NOW_MS)
    save_states(db, [state(payload=b"old", since_us=1), state(TWO, payload=b"old", since_us=3)])
    save_states(db, [state(payload=b"new", since_us=2), state(TWO, payload=b"new", since_us=4)])
    late = state(payload=b"late", at_ms=NOW_MS + 99, since_us=1)
    save_states(db, [late, state(TWO, payload=b"newer", since_us=4)])
    assert found(db, ONE, TWO) == {
        ONE: state(payload=b"new", since_us=2),
        TWO: state(TWO, payload=b"newer", since_us=4),
    }


def test_first_state_after_one_was_forgotten_is_stored(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=NOW_MS)
    save_states(db, [state(since_us=9)])
    forget_state(db, ONE)
    save_states(db, [state(since_us=2)])
    assert found(db, ONE)[ONE].since_us == 2


@pytest.mark.parametrize(("ahead_us", "kept"), [(AHEAD_US - 60_000_000, b"old"), (AHEAD_US + 1, b"new")])
def test_stored_time_of_a_wrong_clock_does_not_count(db: Connection, ahead_us: int, kept: bytes) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=1)
    wall_us = now_ms() * 1000
    save_states(db, [state(payload=b"old", since_us=wall_us + ahead_us + 10_000_000)])
    save_states(db, [state(payload=b"new", since_us=wall_us)])
    assert found(db, ONE)[ONE].payload == kept


def test_the_latest_of_concurrent_saves_remains(url: str) -> None:
    with Database.open(url) as database:
        with database.writing() as db:
            add_devices(db, [new_device(number, "ada") for number in range(1, 21)], now_ms=1)

        def save(since_us: int) -> None:
            with database.writing() as db:
                ids = (device_id(number) for number in range(1, 21))
                save_states(db, [state(of, payload=b"%d" % since_us, since_us=since_us) for of in ids])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(save, [3, 1, 8, 5, 2, 7, 4, 6]))
        with database.reading() as db:
            remaining = found(db, *(device_id(number) for number in range(1, 21)))
    assert {(each.since_us, each.payload) for each in remaining.values()} == {(8, b"8")}


async def test_the_store_finds_what_it_has_saved_unless_it_is_too_old(url: str) -> None:
    with Database.open(url) as database, database.writing() as db:
        add_devices(db, [new_device(1, "ada"), new_device(2, "ada")], now_ms=1)
    async with open_store(url, states_kept_s=3600) as store:
        old, new = state(at_ms=now_ms() - 3_600_001), state(TWO, at_ms=now_ms() - 3_590_000)
        await store.save_states([old, new])
        assert await store.find_state(ONE) is None
        assert await store.find_state(TWO) == new
