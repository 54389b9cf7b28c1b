"""What machines proved while the registry could not be written: bounded, and written later if still true."""

from collections.abc import Iterator

import pytest
import trio
from sqlalchemy import Connection, select

from brewos_relay.errors import RegistryError
from brewos_relay.registry import held_writes
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_keys import add_next_key
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.held_writes import TOKENS_PER_DEVICE, HeldWrites, write_held
from brewos_relay.registry.pairing import HeldPairing, pair_device
from brewos_relay.registry.records import NewDevice
from brewos_relay.registry.schema import claims
from brewos_relay.registry.write_behind import WriteBehind
from support.registry_files import MINUTE_MS, NOW_MS, hash_of

ID = "BRW-0000001A"
FIRST = hash_of("first")


@pytest.fixture
def db(url: str) -> Iterator[Connection]:
    with Database.open(url) as database, database.writing() as db:
        add_devices(db, [NewDevice(id=ID, key_hash=FIRST, user_id="olga")], now_ms=NOW_MS)
        yield db


def shown(
    token: str = "token", *, key: str = "first", device_id: str = ID, expires_at_ms: int = NOW_MS + MINUTE_MS
) -> HeldPairing:
    return HeldPairing(
        device_id=device_id,
        key_hash=hash_of(key),
        token_hash=hash_of(token),
        expires_at_ms=expires_at_ms,
        networks=("192.0.2.0/24", "192.0.2.7"),
    )


def held_writes_at(now_ms: int = NOW_MS) -> HeldWrites:
    return HeldWrites(now_ms=lambda: now_ms)


def tokens(db: Connection) -> list[bytes]:
    return sorted(db.scalars(select(claims.c.token_hash)).all())


def test_newest_tokens_of_a_device_are_held_until_they_expire() -> None:
    held = held_writes_at()
    for number in range(TOKENS_PER_DEVICE + 2):
        held.hold_pairing(shown(str(number)))
    held.hold_pairing(shown("2"))  # again
    assert [pair_device.token_hash for pair_device in held.pairings_of(ID)] == [hash_of("3"), hash_of("2")]
    held.hold_pairing(shown("old", expires_at_ms=NOW_MS))
    assert [pair_device.token_hash for pair_device in held.pairings_of(ID)] == [hash_of("2")]
    assert list(held.pairings_of("BRW-0000FFFF")) == []


def test_number_of_devices_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_writes, "DEVICES_AT_MOST", 2)
    held = held_writes_at()
    for number in range(4):
        held.hold_pairing(shown(device_id=f"BRW-0000000{number}"))
    assert [device_id for device_id, _, _ in held.all()] == ["BRW-00000002", "BRW-00000003"]


def test_written_facts_are_forgotten_and_newer_ones_kept() -> None:
    held = held_writes_at()
    held.hold_pairing(shown("a"))
    held.hold_use(ID, FIRST, "confirmed")
    written = held.all()
    held.hold_pairing(shown("b"))
    held.forget(written)
    assert [pair_device.token_hash for pair_device in held.pairings_of(ID)] == [hash_of("b")]
    held.forget(held.all())
    held.forget(written)
    assert not held


def test_held_writes_happen_once_while_their_key_works(db: Connection) -> None:
    add_next_key(db, ID, hash_of("next"), now_ms=NOW_MS)
    held = held_writes_at()
    held.hold_pairing(shown("good"))
    held.hold_pairing(shown("of next", key="next"))
    held.hold_pairing(shown(device_id="BRW-0000FFFF"))
    held.hold_use("BRW-0000FFFF", FIRST, "confirmed")
    for _ in range(2):
        write_held(db, held.all(), now_ms=NOW_MS)
        assert tokens(db) == sorted([hash_of("good"), hash_of("of next")])
    held.hold_use(ID, hash_of("next"), "next")
    held.hold_use(ID, hash_of("stranger's"), "next")
    for _ in range(2):
        write_held(db, held.all(), now_ms=NOW_MS)
        (device,) = find_devices(db, [ID])
        assert (device.key_hash, device.next_key_hashes) == (hash_of("next"), ())


@pytest.mark.parametrize("late", [shown("late", key="stranger's"), shown("late", expires_at_ms=NOW_MS)])
def test_token_whose_key_or_time_has_ended_is_not_stored(db: Connection, late: HeldPairing) -> None:
    write_held(db, [(ID, late, late.key_hash)], now_ms=NOW_MS)
    assert tokens(db) == []


def test_pairing_stores_a_held_token_first(db: Connection) -> None:
    claimed = pair_device(
        db,
        device_id=ID,
        token_hash=hash_of("held"),
        user_id="bob",
        name=None,
        now_ms=NOW_MS,
        held=[shown("held")],
    )
    assert claimed is not None
    assert claimed.role == "member"


def tokens_at(database: Database) -> list[bytes]:
    with database.reading() as db:
        return tokens(db)


async def test_held_token_stays_until_the_registry_can_be_written(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brewos_relay.registry.write_behind.now_ms", lambda: NOW_MS)
    monkeypatch.setattr("brewos_relay.registry.write_behind.FLUSH_EVERY_S", 0.02)
    monkeypatch.setattr("brewos_relay.registry.write_behind.HeldWrites", lambda **_: held_writes_at())
    with Database.open(url) as database:
        with database.writing() as db:
            add_devices(db, [NewDevice(id=ID, key_hash=FIRST, user_id="olga")], now_ms=NOW_MS)
        notes = WriteBehind(database, limiter=trio.CapacityLimiter(1))
        writing, failures = database.writing, iter([True, True])

        def fails_twice(**told: float | None) -> object:
            if next(failures, False):
                raise RegistryError("the registry could not be changed: the disk is full")
            return writing(**told)

        monkeypatch.setattr(database, "writing", fails_twice)
        notes.hold_pairing(shown("held"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notes.run)
            with trio.fail_after(20):
                while not tokens_at(database):
                    assert len(notes.held_pairings(ID)) == 1
                    await trio.sleep(0.01)
                while notes.held_pairings(ID):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert next(failures, None) is None  # after two failures
        assert tokens_at(database) == [hash_of("held")]
