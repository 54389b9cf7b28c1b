"""The usage of machines by days: whose is stored, how energy is added, and when it goes."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from sqlalchemy import Connection, func, select

from brewos_relay.registry.access import leave, release
from brewos_relay.registry.daily_usage import DAYS_KEPT, add_usage, usage_of
from brewos_relay.registry.devices import add_devices, remove_device
from brewos_relay.registry.records import DayUsage, Usage
from brewos_relay.registry.schema import daily_usage
from support.registry import NOW_MS, device_id, new_device

ONE, TWO = device_id(1), device_id(2)
DAY: Final = 20_000
MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS


def usage(of: str = ONE, *, day: int = DAY, at_ms: int = NOW_MS + MINUTE_MS, **values: Any) -> Usage:
    figures: dict[str, Any] = {"on_s": 0, "steam_cycles": 0, "energy_mwh": 0, "counter_mwh": None}
    return Usage(device_id=of, day=day, began_at_ms=at_ms - 1, at_ms=at_ms, **{**figures, **values})


def energy(db: Connection, of: str = ONE) -> list[tuple[int, int]]:
    return [(one.day - DAY, one.energy_mwh) for one in usage_of(db, of, from_day=0)]


@pytest.fixture
def machines(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2, "ada")], now_ms=NOW_MS)


@pytest.mark.usefixtures("machines")
def test_usage_of_a_day_is_added_up(db: Connection) -> None:
    add_usage(
        db, [usage(on_s=60, steam_cycles=1, energy_mwh=5), usage(on_s=30, energy_mwh=7), usage(TWO, on_s=9)]
    )
    add_usage(db, [usage(on_s=10, day=DAY + 1)])
    add_usage(db, [])
    assert usage_of(db, ONE, from_day=DAY) == [
        DayUsage(day=DAY, on_s=90, steam_cycles=1, energy_mwh=12),
        DayUsage(day=DAY + 1, on_s=10, steam_cycles=0, energy_mwh=0),
    ]
    assert usage_of(db, ONE, from_day=DAY + 1) == usage_of(db, ONE, from_day=DAY)[1:]


@pytest.mark.usefixtures("machines")
def test_counter_adds_what_was_used_since_its_last_value(db: Connection) -> None:
    """Two servers that store the same value, one after the other, add it once."""
    at_ms = NOW_MS + MINUTE_MS
    for value, expected in [(1000, 1000), (1500, 1500), (1500, 1500), (200, 1700)]:
        add_usage(db, [usage(counter_mwh=value, energy_mwh=9, at_ms=at_ms)])
        assert energy(db) == [(0, expected)]
    # Past midnight: the counter is not reset yet, then it is.
    add_usage(db, [usage(counter_mwh=260, day=DAY + 1, at_ms=at_ms + 10 * MINUTE_MS)])
    add_usage(db, [usage(counter_mwh=40, day=DAY + 1, at_ms=at_ms + 20 * MINUTE_MS)])
    assert energy(db) == [(0, 1700), (1, 100)]
    # After an absence of hours, the counter was reset, even if its value is greater.
    add_usage(db, [usage(counter_mwh=900, day=DAY + 2, at_ms=at_ms + 9 * HOUR_MS)])
    add_usage(db, [usage(on_s=5, day=DAY + 2, at_ms=at_ms + 9 * HOUR_MS)])
    add_usage(db, [usage(counter_mwh=950, day=DAY + 2, at_ms=at_ms + 10 * HOUR_MS)])
    assert energy(db) == [(0, 1700), (1, 100), (2, 950)]


@pytest.mark.usefixtures("machines")
def test_old_days_are_deleted(db: Connection) -> None:
    for day in (-1, 0, DAYS_KEPT - 1, DAYS_KEPT):
        add_usage(db, [usage(day=DAY + day, on_s=1)])
    assert [each for each, _ in energy(db)] == [DAYS_KEPT - 1, DAYS_KEPT]
    add_usage(db, [usage(day=DAY + 1000, on_s=1)])
    add_usage(db, [usage(day=DAY + 1, on_s=1)])
    assert [each for each, _ in energy(db)] == [1], "the clock of the server was wrong"


def test_usage_of_unowned_devices_and_from_before_their_users_is_not_stored(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=NOW_MS)
    add_usage(db, [usage(on_s=1, at_ms=NOW_MS), usage(TWO, on_s=1)])
    assert energy(db) == energy(db, TWO) == []


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    "end",
    [
        lambda db: release(db, ONE, now_ms=NOW_MS),
        lambda db: leave(db, ONE, "ada", now_ms=NOW_MS),
        lambda db: remove_device(db, ONE, now_ms=NOW_MS),
    ],
    ids=["released", "left", "removed"],
)
def test_usage_is_deleted_when_the_device_is(db: Connection, end: Callable[[Connection], None]) -> None:
    add_usage(db, [usage(on_s=1), usage(TWO, on_s=1)])
    end(db)
    assert energy(db) == []
    assert db.execute(select(func.count()).select_from(daily_usage)).scalar_one() == 1
