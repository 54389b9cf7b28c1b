"""The shots of machines: whose are stored, how many, and when they go."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest
from sqlalchemy import Connection, func, select

from brewos_relay.registry.access import give, leave, release
from brewos_relay.registry.account_removal import close_account, remove_some
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.device_keys import replace_key
from brewos_relay.registry.devices import add_devices, lock_device, remove_device
from brewos_relay.registry.login_sessions import last_device_of, open_session
from brewos_relay.registry.pairing import pair_device, register_pairing
from brewos_relay.registry.pairing_proof import release_device
from brewos_relay.registry.records import Shot
from brewos_relay.registry.schema import shots
from brewos_relay.registry.shots import PROFILE_BYTES_AT_MOST, add_shots, delete_shot, find_shot, shots_of
from brewos_relay.registry.store import open_store
from support.registry import NOW_MS, device_id, new_device

ONE, TWO = device_id(1), device_id(2)
HASH: Final = bytes([7]) * 32
LATER_MS: Final = NOW_MS + 60_000


def shot(of: str = ONE, *, began_at_ms: int = LATER_MS, profile: bytes = b"\0x") -> Shot:
    return Shot(
        device_id=of,
        began_at_ms=began_at_ms,
        duration_ms=28_500,
        is_complete=True,
        summary={"weight": 36.1},
        profile=profile,
    )


def stored(db: Connection) -> int:
    return db.execute(select(func.count()).select_from(shots)).scalar_one()


def began(db: Connection, of: str = ONE, **page: Any) -> list[int]:
    return [one.began_at_ms - LATER_MS for one in shots_of(db, of, **page)]


@pytest.fixture
def machines(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2, "ada")], now_ms=NOW_MS)


@pytest.mark.usefixtures("machines")
def test_shots_are_listed_newest_first_and_read_with_their_profile(db: Connection) -> None:
    add_shots(db, [shot(began_at_ms=LATER_MS + number) for number in range(5)], kept=100)
    add_shots(db, [shot(TWO)], kept=100)
    add_shots(db, [], kept=100)
    assert began(db) == [4, 3, 2, 1, 0]
    listed = shots_of(db, ONE, limit=2)
    assert listed[0] == replace(shot(), id=listed[0].id, began_at_ms=LATER_MS + 4, profile=b"")
    assert began(db, before_id=listed[1].id) == [2, 1, 0]
    assert began(db, from_ms=LATER_MS + 1, until_ms=LATER_MS + 3) == [2, 1]
    assert find_shot(db, ONE, listed[0].id) == replace(listed[0], profile=b"\0x")
    assert find_shot(db, TWO, listed[0].id) is None, "of another machine"
    assert not delete_shot(db, TWO, listed[0].id)
    assert delete_shot(db, ONE, listed[0].id)
    assert began(db) == [3, 2, 1, 0]


@pytest.mark.usefixtures("machines")
def test_each_machine_keeps_its_newest_shots(db: Connection) -> None:
    add_shots(db, [shot(TWO)], kept=3)
    for number in range(4):
        add_shots(db, [shot(began_at_ms=LATER_MS + number)] * 2, kept=3)
    assert began(db) == [3, 3, 2]
    assert began(db, TWO) == [0]


def test_unowned_devices_have_no_shots(db: Connection) -> None:
    add_devices(db, [new_device(1)], now_ms=NOW_MS)  # by hand
    register_pairing(db, device_id=TWO, key_hash=HASH, token_hash=HASH, now_ms=NOW_MS, expires_at_ms=LATER_MS)
    add_shots(db, [shot(), shot(TWO), shot(device_id(3))], kept=100)
    assert stored(db) == 1
    assert began(db) == [0]


@pytest.mark.usefixtures("machines")
def test_a_profile_that_is_too_large_is_not_stored(db: Connection) -> None:
    most = b"x" * PROFILE_BYTES_AT_MOST
    add_shots(db, [shot(profile=most), shot(TWO, profile=most + b"x")], kept=100)
    assert stored(db) == len(began(db)) == 1


FORGETTING: dict[str, Callable[[Connection], Any]] = {
    "the device is removed": lambda db: remove_device(db, ONE, now_ms=LATER_MS),
    "its last owner leaves": lambda db: leave(db, ONE, "ada", now_ms=LATER_MS),
    "its owner takes it from everyone": lambda db: release(db, ONE, now_ms=LATER_MS),
    "an administrator releases it": lambda db: release_device(db, ONE, now_ms=LATER_MS),
}


@pytest.mark.parametrize("forget", FORGETTING.values(), ids=FORGETTING)
@pytest.mark.usefixtures("machines")
def test_shots_are_deleted_when(db: Connection, forget: Callable[[Connection], Any]) -> None:
    add_shots(db, [shot(), shot(TWO)], kept=100)
    forget(db)
    assert stored(db) == len(began(db, TWO)) == 1


def test_shots_are_deleted_with_the_account_of_the_last_owner(db: Connection) -> None:
    user_id = add_user(db, email="ada@example.com", name=None, now_ms=NOW_MS).id
    add_devices(db, [new_device(1, user_id), new_device(2, user_id)], now_ms=NOW_MS)
    give(db, TWO, "bob", role="owner", now_ms=NOW_MS)
    add_shots(db, [shot(), shot(TWO)], kept=100)
    close_account(db, user_id, now_ms=LATER_MS)
    while remove_some(db, user_id, now_ms=LATER_MS):
        pass
    assert began(db, ONE) == []
    assert began(db, TWO) == [0], "another owner is left"


@pytest.mark.usefixtures("machines")
def test_shots_stay_with_the_device_if_its_key_changes(db: Connection) -> None:
    add_shots(db, [shot()], kept=100)
    replace_key(db, lock_device(db, ONE), HASH, user_id="ada", now_ms=LATER_MS)
    assert stored(db) == 1


def test_a_new_owner_does_not_get_shots_of_the_owner_before(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=NOW_MS)
    leave(db, ONE, "ada", now_ms=NOW_MS + 2)
    register_pairing(db, device_id=ONE, key_hash=HASH, token_hash=HASH, now_ms=NOW_MS, expires_at_ms=LATER_MS)
    add_shots(db, [shot(began_at_ms=NOW_MS + 1)], kept=100)
    assert pair_device(db, device_id=ONE, token_hash=HASH, user_id="bob", name=None, now_ms=NOW_MS + 3)
    add_shots(db, [shot(began_at_ms=NOW_MS + 1)], kept=100)  # stored late
    assert stored(db) == 0
    add_shots(db, [shot(began_at_ms=NOW_MS + 4)], kept=100)
    assert stored(db) == 1


async def test_session_knows_the_device_that_it_attached_to_last(url: str) -> None:
    def add(db: Connection) -> None:
        user = add_user(db, email="ada@example.com", name=None, now_ms=NOW_MS)
        for name in ("one", "two"):
            open_session(
                db,
                session_id=name,
                user_id=user.id,
                refresh_hash=name.encode().ljust(32),
                user_agent=None,
                address=None,
                now_ms=NOW_MS,
                expires_at_ms=LATER_MS,
            )

    async with open_store(url) as store:
        await store.write(add)
        store.write_behind.record_attached("one", ONE)
        store.write_behind.record_attached("one", TWO)
        store.write_behind.record_attached("of an ended session", TWO)
    async with open_store(url) as store:
        assert await store.read(last_device_of, "one") == TWO
        assert await store.read(last_device_of, "two") is None
