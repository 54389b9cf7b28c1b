from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from brewos_relay.errors import DeviceUnknown, TooManyKeys
from brewos_relay.registry.activity import activity_of
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_keys import (
    NEXT_KEYS_AT_MOST,
    add_next_key,
    drop_next_key,
    use_next_key,
    works,
)
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.held_writes import HeldWrites, write_held
from brewos_relay.registry.pairing import register_pairing
from brewos_relay.registry.records import Device, NewDevice
from brewos_relay.registry.schema import claims
from support.change_rows import read_changes
from support.registry_files import MINUTE_MS, NOW_MS, fresh_device_id, hash_of

ID = "BRW-0000001A"
FIRST = hash_of("first")


@pytest.fixture
def db(url: str) -> Iterator[Connection]:
    with Database.open(url) as database, database.writing() as db:
        add_devices(db, [NewDevice(id=ID, key_hash=FIRST, user_id="olga")], now_ms=NOW_MS)
        yield db


def device(db: Connection, device_id: str = ID) -> Device:
    [found] = find_devices(db, [device_id])
    return found


def send(db: Connection, *names: str) -> None:
    for name in names:
        add_next_key(db, ID, hash_of(name), now_ms=NOW_MS, user_id="olga")


def use(db: Connection, name: str) -> bool:
    return use_next_key(db, ID, hash_of(name), now_ms=NOW_MS)


def test_a_key_that_was_sent_works_besides_the_one_before(db: Connection) -> None:
    send(db, "a", "b")
    assert device(db).key_hash == FIRST
    assert device(db).next_key_hashes == (hash_of("a"), hash_of("b"))
    assert [works(device(db), hash_of(name)) for name in ("first", "a", "b", "c")] == [
        True,
        True,
        True,
        False,
    ]
    assert [(entry.kind, entry.user_id) for entry in activity_of(db, ID)] == [("key_sent", "olga")] * 2


def test_a_key_that_was_not_sent_after_all_is_dropped(db: Connection) -> None:
    send(db, "a", "b")
    drop_next_key(db, ID, hash_of("a"))
    assert device(db).next_key_hashes == (hash_of("b"),)
    drop_next_key(db, ID, hash_of("b"))
    drop_next_key(db, ID, hash_of("first"))
    assert (device(db).key_hash, device(db).next_key_hashes) == (FIRST, ())


def test_a_key_that_is_used_ends_those_before_it_and_none_after(db: Connection) -> None:
    send(db, "a", "b", "c", "d")
    assert use(db, "b")
    assert device(db).key_hash == hash_of("b")
    assert device(db).next_key_hashes == (hash_of("c"), hash_of("d"))
    assert not use(db, "first")
    assert not use(db, "a")
    assert use(db, "d")
    assert device(db).next_key_hashes == ()
    assert activity_of(db, ID)[0].kind == "key_changed"


def test_using_the_key_that_it_has_changes_nothing(db: Connection) -> None:
    send(db, "a")
    before = device(db)
    assert use(db, "first")
    assert device(db) == before
    assert [entry.kind for entry in activity_of(db, ID)] == ["key_sent"]


def test_a_key_that_was_sent_outlives_every_use_of_an_older_one(db: Connection) -> None:
    """The device may have stored this key, while a thief connects with an older one."""
    send(db, "a", "b")
    for name in ("first", "first", "a", "first", "a"):
        use(db, name)
    assert not works(device(db), FIRST)
    assert use(db, "b")


def test_unsent_key_does_not_work(db: Connection) -> None:
    assert not use(db, "stranger")
    assert not use_next_key(db, "BRW-0000FFFF", FIRST, now_ms=NOW_MS)
    assert device(db).key_hash == FIRST


def test_sending_a_key_again_changes_nothing(db: Connection) -> None:
    send(db, "a", "a", "first")
    assert device(db).next_key_hashes == (hash_of("a"),)


def test_no_key_is_forgotten_to_make_room(db: Connection) -> None:
    names = [str(number) for number in range(NEXT_KEYS_AT_MOST)]
    send(db, *names)
    with pytest.raises(TooManyKeys, match=ID) as caught:
        send(db, "one more")
    assert caught.value.device_id == ID
    assert all(works(device(db), hash_of(name)) for name in names)
    assert use(db, "2")
    send(db, "one more", "and another")


def test_keys_of_a_device_that_is_unknown(db: Connection) -> None:
    with pytest.raises(DeviceUnknown):
        add_next_key(db, "BRW-0000FFFF", FIRST, now_ms=NOW_MS)


def test_using_a_key_writes_no_change(db: Connection) -> None:
    # The machine that connected with the key replaces its own older connection.
    send(db, "a")
    assert use(db, "a")
    assert read_changes(db, 0) == []


def test_tokens_registered_with_a_key_end_with_it(db: Connection) -> None:
    send(db, "a", "b")
    for key in ("first", "a", "b", "stranger"):
        register_pairing(
            db,
            device_id=ID,
            key_hash=hash_of(key),
            token_hash=hash_of(f"token {key}"),
            now_ms=NOW_MS,
            expires_at_ms=NOW_MS + MINUTE_MS,
        )
    assert device(db).key_pending_since_ms == NOW_MS
    assert use(db, "a")
    good = select(claims.c.token_hash).where(claims.c.used_by.is_(None))
    assert set(db.scalars(good)) == {hash_of("token a"), hash_of("token b")}
    assert device(db).key_pending_since_ms is None


class Machine:
    """A machine that stores a new key at once or at its next boot, loses it, ignores it, or misses it."""

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        self.key = "first"
        self.unsaved: str | None = None
        self.for_next_boot: str | None = None

    def receive(self, key: str, how: str) -> None:
        if how == "keeps":
            self.key, self.unsaved, self.for_next_boot = key, None, None
        elif how == "keeps for now":
            self.unsaved, self.for_next_boot = key, None
        elif how == "keeps for its next boot":
            self.for_next_boot = key

    def connect(self, db: Connection, *, held: HeldWrites | None = None) -> None:
        """Connect. With `held`, the registry cannot be written, so the use of the key is held."""
        key = self.unsaved or self.key
        assert works(device(db, self.device_id), hash_of(key)), f"locked out with {key}"
        if held is None:
            assert use_next_key(db, self.device_id, hash_of(key), now_ms=NOW_MS)
        else:
            held.hold_use(self.device_id, hash_of(key), "next")
        # It stores the key that it has connected with.
        self.key, self.unsaved = key, None

    def boot(self, db: Connection) -> None:
        self.key, self.for_next_boot = self.for_next_boot or self.key, None
        self.unsaved = None
        token = hash_of(f"token {self.key}")
        outcome = register_pairing(
            db,
            device_id=self.device_id,
            key_hash=hash_of(self.key),
            token_hash=token,
            now_ms=NOW_MS,
            expires_at_ms=NOW_MS + MINUTE_MS,
        )
        assert outcome == "refreshed"


STEPS = st.lists(
    st.sampled_from(
        [
            *("keeps", "keeps for now", "keeps for its next boot", "ignores", "hears nothing"),
            *("connects", "connects unwritten", "boots", "held is written", "relay crashes", "is attacked"),
        ]
    ),
    max_size=40,
)


def test_no_machine_is_ever_locked_out(database: Database) -> None:
    @settings(max_examples=150)
    @given(steps=STEPS)
    def lives(steps: list[str]) -> None:
        machine = Machine(fresh_device_id())
        held = HeldWrites(now_ms=lambda: NOW_MS)
        with database.writing() as db:
            new = NewDevice(id=machine.device_id, key_hash=FIRST, user_id="olga")
            add_devices(db, [new], now_ms=NOW_MS)
            for number, step in enumerate([*steps, "connects", "boots", "connects"]):
                if step == "connects":
                    machine.connect(db)
                elif step == "connects unwritten":
                    machine.connect(db, held=held)
                elif step == "held is written":
                    written = held.all()
                    write_held(db, written, now_ms=NOW_MS)
                    held.forget(written)
                elif step == "relay crashes":
                    held.forget(held.all())
                elif step == "boots":
                    machine.boot(db)
                elif step == "is attacked":
                    register_pairing(
                        db,
                        device_id=machine.device_id,
                        key_hash=hash_of("eve's"),
                        token_hash=hash_of(f"eve's {number}"),
                        now_ms=NOW_MS,
                        expires_at_ms=NOW_MS + MINUTE_MS,
                    )
                    assert not works(device(db, machine.device_id), hash_of("eve's"))
                else:
                    try:
                        add_next_key(db, machine.device_id, hash_of(f"key {number}"), now_ms=NOW_MS)
                    except TooManyKeys:
                        continue
                    machine.receive(f"key {number}", step)

    lives()
