"""Pairings of machines that never connected: how long they last, and what takes precedence over them."""

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert

from brewos_relay.registry.access import current_users, give, leave
from brewos_relay.registry.activity import activity_of
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_keys import use_next_key, works
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.notices import notices_of
from brewos_relay.registry.pairing import pair_device, register_pairing
from brewos_relay.registry.pairing_proof import (
    UNPROVEN_PAIRING_MS,
    confirm_key,
    connected_with_other_key,
    expire_pairings,
    is_of_interest,
    is_recorded,
    release_device,
    trust_key,
)
from brewos_relay.registry.records import Device, NewDevice, PairingResult
from brewos_relay.registry.schema import devices, users
from support.change_rows import read_changes
from support.registry import prune
from support.registry_files import DAY_MS, MINUTE_MS, NOW_MS, hash_of

ID: Final = "BRW-0000001A"
LIFE_MS: Final = 10 * MINUTE_MS


@pytest.fixture(autouse=True)
def accounts(database: Database) -> None:
    with database.writing() as db:
        for name in ("buyer", "squatter", "guest"):
            email = f"{name}@example.com"
            row = {"id": name, "email": email, "email_key": email, "is_admin": False}
            db.execute(insert(users), {**row, "created_at_ms": NOW_MS})


def register(db: Connection, key: str, *, now_ms: int = NOW_MS, token: str | None = None) -> str:
    return register_pairing(
        db,
        device_id=ID,
        key_hash=hash_of(key),
        token_hash=hash_of(token or f"token of {key}"),
        now_ms=now_ms,
        expires_at_ms=now_ms + LIFE_MS,
        networks=(f"network of {key}",),
    )


def connect(db: Connection, key: str, *, now_ms: int = NOW_MS) -> bool:
    """Connect to the WebSocket like a machine, and tell whether it is accepted."""
    [device] = find_devices(db, [ID])
    key_hash = hash_of(key)
    if works(device, key_hash):
        assert use_next_key(db, ID, key_hash, now_ms=now_ms)
        confirm_key(db, ID, key_hash)
        return True
    if not is_of_interest(device, key_hash) or is_recorded(db, device, key_hash):
        return False
    return connected_with_other_key(db, ID, key_hash, now_ms=now_ms)


def scan(
    db: Connection, key: str, user_id: str, *, now_ms: int = NOW_MS, token: str | None = None
) -> PairingResult | None:
    return pair_device(
        db,
        device_id=ID,
        token_hash=hash_of(token or f"token of {key}"),
        user_id=user_id,
        name=None,
        now_ms=now_ms,
    )


def owners(db: Connection, *, now_ms: int = NOW_MS) -> set[str]:
    return {user for user, access in current_users(db, ID, now_ms=now_ms).items() if access.role == "owner"}


def device(db: Connection) -> Device:
    [found] = find_devices(db, [ID])
    return found


def told(db: Connection, user_id: str) -> list[str]:
    return [notice.kind for notice in notices_of(db, user_id)]


# Precedence


def test_connected_machine_takes_precedence_over_a_pairing_whose_machine_never_connected(
    db: Connection,
) -> None:
    assert register(db, "squatter's") == "stored"
    assert scan(db, "squatter's", "squatter")
    assert register(db, "real") == "pending"
    assert not connect(db, "real")
    answer = scan(db, "real", "buyer")
    assert answer == PairingResult(device_id=ID, device_name=None, role="owner", key_changed=True)
    assert owners(db) == {"buyer"}
    assert connect(db, "real")
    assert scan(db, "squatter's", "squatter") is None
    assert scan(db, "real", "buyer") == PairingResult(device_id=ID, device_name=None, role="owner")


def test_both_users_are_notified_and_activity_is_added(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    register(db, "real")
    connect(db, "real")
    before = len(read_changes(db, 0))
    scan(db, "real", "buyer")
    assert told(db, "buyer") == ["won_by_machine"]
    assert told(db, "squatter") == ["lost_to_machine"]
    noted = [(entry.kind, entry.user_id) for entry in activity_of(db, ID)]
    assert noted == [("claimed", "buyer"), ("key_changed", "buyer"), ("owner_changed", "buyer")]
    # The clients of the former owner are notified before they are closed.
    kinds = [change.kind for change in read_changes(db, 0)[before:]]
    assert kinds == ["owner_changed", "access_changed", "key_changed", "access_changed"]


def test_pairing_without_a_connection_takes_nothing_from_an_unproven_owner(db: Connection) -> None:
    register(db, "real")
    scan(db, "real", "buyer")
    assert register(db, "squatter's") == "pending"
    assert scan(db, "squatter's", "squatter") is None
    assert owners(db) == {"buyer"}
    assert told(db, "buyer") == []


def test_owner_whose_machine_connects_within_a_day_gets_it_back_from_a_stranger(db: Connection) -> None:
    register(db, "real")
    scan(db, "real", "buyer")
    register(db, "squatter's")
    connect(db, "squatter's")
    assert scan(db, "squatter's", "squatter")
    assert connect(db, "squatter's")
    late_ms = NOW_MS + UNPROVEN_PAIRING_MS - 1
    assert register(db, "real", now_ms=late_ms, token="later") == "pending"
    assert connect(db, "real", now_ms=late_ms)
    assert owners(db) == {"buyer"}
    assert device(db).key_hash == hash_of("real")
    assert not connect(db, "squatter's", now_ms=late_ms)
    assert told(db, "buyer") == ["won_by_machine", "lost_to_machine"]
    assert told(db, "squatter") == ["lost_to_machine", "won_by_machine"]
    # The stranger cannot repeat it: this machine has connected.
    register(db, "squatter's", now_ms=late_ms, token="again")
    assert not connect(db, "squatter's", now_ms=late_ms)
    assert scan(db, "squatter's", "squatter", now_ms=late_ms, token="again") is None
    assert owners(db) == {"buyer"}


def test_former_pairing_is_not_restored_after_its_day(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    register(db, "real")
    connect(db, "real")
    scan(db, "real", "buyer")
    assert not connect(db, "squatter's", now_ms=NOW_MS + UNPROVEN_PAIRING_MS)
    assert owners(db) == {"buyer"}


def test_former_pairing_is_not_restored_for_a_removed_account(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    register(db, "real")
    connect(db, "real")
    scan(db, "real", "buyer")
    db.execute(users.delete().where(users.c.id == "squatter"))
    assert not connect(db, "squatter's")
    assert owners(db) == {"buyer"}


def test_nothing_takes_precedence_over_a_machine_that_has_connected(db: Connection) -> None:
    register(db, "real")
    scan(db, "real", "buyer")
    assert connect(db, "real")
    register(db, "squatter's")
    assert not connect(db, "squatter's")
    assert scan(db, "squatter's", "squatter") is None
    assert owners(db) == {"buyer"}


def test_connection_before_pairing_counts(db: Connection) -> None:
    register(db, "real")
    assert connect(db, "real")
    scan(db, "real", "buyer")
    register(db, "squatter's")
    connect(db, "squatter's")
    assert scan(db, "squatter's", "squatter") is None
    prune(db, now_ms=NOW_MS + 30 * DAY_MS)
    assert owners(db) == {"buyer"}


def test_connection_of_an_earlier_key_proves_nothing_for_the_next_one(db: Connection) -> None:
    register(db, "real")
    connect(db, "real")
    scan(db, "real", "guest")
    leave(db, ID, "guest", now_ms=NOW_MS)
    # A stranger registers and pairs the machine while it is between two owners.
    assert register(db, "squatter's") == "replaced"
    assert scan(db, "squatter's", "squatter")
    register(db, "real", token="new")
    connect(db, "real")
    assert scan(db, "real", "buyer", token="new")
    assert owners(db) == {"buyer"}


def test_owner_who_pairs_a_reset_machine_again_keeps_a_proven_pairing(db: Connection) -> None:
    register(db, "real")
    connect(db, "real")
    scan(db, "real", "buyer")
    register(db, "after the reset")
    assert scan(db, "after the reset", "buyer")
    register(db, "squatter's")
    connect(db, "squatter's")
    assert scan(db, "squatter's", "squatter") is None
    prune(db, now_ms=NOW_MS + 2 * DAY_MS)
    assert owners(db) == {"buyer"}


def test_new_token_of_a_connected_machine_needs_no_second_attempt(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    register(db, "real")
    connect(db, "real")
    register(db, "real", token="refreshed")
    assert scan(db, "real", "buyer", token="refreshed")


def test_repeated_connections_are_recorded_once(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    register(db, "real")
    assert not is_recorded(db, device(db), hash_of("real"))
    connect(db, "real")
    assert is_recorded(db, device(db), hash_of("real"))
    assert is_recorded(db, device(db), hash_of("a key that was never registered"))


STRANGERS_STEPS: Final = st.lists(
    st.sampled_from(["registers", "registers again", "connects", "scans", "time passes"]), max_size=25
)


def test_owner_has_the_machine_once_it_connects_despite_any_stranger(database: Database) -> None:
    @settings(max_examples=100 if database.one_writer else 20)
    @given(before=STRANGERS_STEPS, after=STRANGERS_STEPS)
    def lives(before: list[str], after: list[str]) -> None:
        with database.writing() as db:
            try:
                live(db, before, after)
            finally:
                db.execute(devices.delete())

    def live(db: Connection, before: list[str], after: list[str]) -> None:
        register(db, "real")
        assert scan(db, "real", "buyer")
        at_ms = act(db, before, NOW_MS, hour_ms=UNPROVEN_PAIRING_MS // 26)
        register(db, "real", now_ms=at_ms, token="shown later")
        assert connect(db, "real", now_ms=at_ms)
        assert owners(db, now_ms=at_ms) == {"buyer"}
        at_ms = act(db, after, at_ms, hour_ms=DAY_MS)
        prune(db, now_ms=at_ms)
        assert owners(db, now_ms=at_ms) == {"buyer"}
        assert connect(db, "real", now_ms=at_ms)

    def act(db: Connection, steps: list[str], now_ms: int, *, hour_ms: int) -> int:
        for number, step in enumerate(steps):
            match step:
                case "registers":
                    register(db, "squatter's", now_ms=now_ms)
                case "registers again":
                    register(db, "squatter's", now_ms=now_ms, token=f"{now_ms} {number}")
                case "connects":
                    connect(db, "squatter's", now_ms=now_ms)
                case "scans":
                    scan(db, "squatter's", "squatter", now_ms=now_ms)
                case _:
                    now_ms += hour_ms
        return now_ms

    lives()


# Expiry


def test_pairing_expires_after_a_day_without_a_machine(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    prune(db, now_ms=NOW_MS + UNPROVEN_PAIRING_MS - 1)
    assert owners(db) == {"squatter"}
    prune(db, now_ms=NOW_MS + UNPROVEN_PAIRING_MS)
    assert owners(db) == set()
    assert told(db, "squatter") == ["claim_expired"]


def test_expired_pairing_blocks_no_user_before_it_is_pruned(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    over_ms = NOW_MS + UNPROVEN_PAIRING_MS
    assert register(db, "real", now_ms=over_ms) == "replaced"
    answer = scan(db, "real", "buyer", now_ms=over_ms)
    assert answer
    assert answer.role == "owner"
    assert owners(db, now_ms=over_ms) == {"buyer"}


def test_pairing_checks_the_expiry_itself(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    register(db, "real", now_ms=NOW_MS + UNPROVEN_PAIRING_MS - 1)
    answer = scan(db, "real", "buyer", now_ms=NOW_MS + UNPROVEN_PAIRING_MS)
    assert answer == PairingResult(device_id=ID, device_name=None, role="owner", key_changed=True)
    assert owners(db) == {"buyer"}


def test_second_owner_does_not_prolong_a_pairing(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    give(db, ID, "guest", role="owner", now_ms=NOW_MS + DAY_MS // 2)
    prune(db, now_ms=NOW_MS + UNPROVEN_PAIRING_MS)
    assert owners(db) == set()
    assert told(db, "guest") == ["claim_expired"]


def test_machine_of_the_command_line_keeps_its_owner_without_ever_connecting(db: Connection) -> None:
    add_devices(db, [NewDevice(id=ID, key_hash=hash_of("real"), user_id="buyer")], now_ms=NOW_MS)
    register(db, "squatter's")
    connect(db, "squatter's")
    assert scan(db, "squatter's", "squatter") is None
    prune(db, now_ms=NOW_MS + 30 * DAY_MS)
    assert owners(db) == {"buyer"}


def test_machine_from_before_these_rules_keeps_its_owner_without_ever_connecting(db: Connection) -> None:
    register(db, "real")
    scan(db, "real", "buyer")
    trust_key(db, ID)  # as the migration leaves it: without a time
    register(db, "squatter's")
    connect(db, "squatter's")
    assert scan(db, "squatter's", "squatter") is None
    prune(db, now_ms=NOW_MS + 30 * DAY_MS)
    assert owners(db) == {"buyer"}


def test_expiry_goes_on_where_it_stopped(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewos_relay.registry.pairing_proof.EXPIRED_AT_ONCE", 1)
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    over_ms = NOW_MS + UNPROVEN_PAIRING_MS
    assert expire_pairings(db, now_ms=over_ms)
    assert not expire_pairings(db, now_ms=over_ms)


# Release


def test_administrator_releases_a_machine_from_a_stranger_whose_machine_connected(db: Connection) -> None:
    register(db, "squatter's")
    connect(db, "squatter's")
    scan(db, "squatter's", "squatter")
    register(db, "real")
    assert not connect(db, "real")
    assert scan(db, "real", "buyer") is None
    assert release_device(db, ID, now_ms=NOW_MS) == 1
    assert told(db, "squatter") == ["released"]
    assert register(db, "real", token="next") == "replaced"
    assert scan(db, "real", "buyer", token="next")
    assert connect(db, "real")
    assert owners(db) == {"buyer"}


def test_release_also_ends_the_former_pairing(db: Connection) -> None:
    register(db, "squatter's")
    scan(db, "squatter's", "squatter")
    register(db, "real")
    connect(db, "real")
    scan(db, "real", "buyer")
    release_device(db, ID, now_ms=NOW_MS)
    assert not connect(db, "squatter's")
    assert owners(db) == set()


def test_key_of_an_earlier_token_counts_as_unconnected_when_paired(db: Connection) -> None:
    register(db, "real")
    register(db, "other")
    # The token of the earlier key is used: that key has not connected.
    assert scan(db, "real", "buyer")
    assert device(db).unproven_since_ms == NOW_MS
