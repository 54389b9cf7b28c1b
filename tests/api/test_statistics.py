from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brewos_relay.api.statistics import day_of, offset_of, statistics_of
from brewos_relay.auth.app_cookies import COOKIE, make_cookie
from brewos_relay.live_devices import DeviceHistory
from brewos_relay.registry.daily_usage import add_usage
from brewos_relay.registry.login_sessions import record_attached
from brewos_relay.registry.records import Shot, Usage
from brewos_relay.registry.shots import add_shots
from brewos_relay.vocabulary import now_ms
from support.household import MACHINE, SECOND, STRANGE, open_household

MONDAY_MS = 1_767_571_200_000
"""Monday, 5 January 2026, 00:00 UTC."""
HOUR_MS = 3_600_000


def shot(began_at_ms: int, **summary: float) -> Shot:
    return Shot(
        device_id=MACHINE,
        began_at_ms=began_at_ms,
        duration_ms=30_000,
        is_complete=True,
        summary=summary,
        profile=b"",
    )


def test_days_and_hours_are_by_the_clock_of_the_machine() -> None:
    late = shot(MONDAY_MS + 23 * HOUR_MS, weight=36.0, dose=18.0, peakPressure=9.2)
    early = shot(MONDAY_MS + 7 * HOUR_MS)
    found = statistics_of([late, early], None, offset_s=2 * 3600, now_ms=MONDAY_MS + 30 * HOUR_MS)
    assert {each.day: each.shots for each in found.weekly} == {
        **dict.fromkeys(("Wed", "Thu", "Fri", "Sat", "Sun"), 0),
        "Mon": 1,
        "Tue": 1,
    }
    assert [each.day for each in found.weekly] == ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    assert [each.hour for each in found.hourly_distribution if each.count] == [1, 9]
    assert len(found.daily_history) == 30
    today = found.daily_history[-1]
    assert today.date == (MONDAY_MS + 22 * HOUR_MS) // 1000
    assert (today.shot_count, today.avg_brew_time_ms) == (1, 30_000)
    assert (found.daily_history[0].shot_count, found.daily_history[0].avg_brew_time_ms) == (0, 0)
    newest, other = found.brew_history
    assert (newest.ratio, newest.yield_weight, newest.peak_pressure) == (2.0, 36.0, 9.2)
    assert (other.ratio, other.yield_weight) == (0.0, 0.0)


def test_power_is_averaged_over_five_minutes() -> None:
    history = DeviceHistory(
        MONDAY_MS + 420_000,
        [MONDAY_MS - 60_000, MONDAY_MS, MONDAY_MS + 150_000, MONDAY_MS + 360_000],
        [False] * 4,
        [True] * 4,
        {"power": [50.0, 1000.0, 200.0, None]},
    )
    power = statistics_of([], history, offset_s=0, now_ms=MONDAY_MS, since_ms=MONDAY_MS).power_history
    assert [(each.timestamp, each.avg_watts, each.max_watts) for each in power] == [
        (MONDAY_MS // 1000, 600.0, 1000.0),
        (MONDAY_MS // 1000 + 300, 200.0, 200.0),
    ]
    assert power[0].kwh_consumed == 0.05


@pytest.mark.parametrize(
    ("info", "offset_s"),
    [
        (None, 0),
        ({"time": 7}, 0),
        ({"time": {"utcOffsetMinutes": 60, "dstEnabled": True, "dstOffsetMinutes": 60}}, 7200),
        ({"time": {"utcOffsetMinutes": -210, "dstEnabled": False, "dstOffsetMinutes": 60}}, -12600),
        ({"time": {"utcOffsetMinutes": 10**9, "dstEnabled": 1, "dstOffsetMinutes": "x"}}, 0),
    ],
)
def test_offset_of_the_clock(info: Any, offset_s: int) -> None:
    assert offset_of(info) == offset_s


@pytest.mark.usefixtures("each_registry")
async def test_statistics_are_of_the_device_that_the_session_attached_to_last(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.store.write(add_shots, [shot(now_ms(), weight=36.0)], kept=10)
        house.relay.states[MACHINE] = {"messages": {"device_info": {"time": {"utcOffsetMinutes": 60}}}}
        empty = (await house.ask("GET", "/stats/extended")).content
        assert empty["brewHistory"] == []
        assert len(empty["hourlyDistribution"]) == 24
        await house.store.write(record_attached, {"session of ada": MACHINE})
        found = (await house.ask("GET", "/stats/extended")).content
        assert [each["yieldWeight"] for each in found["brewHistory"]] == [36.0]
        assert sum(each["shots"] for each in found["weekly"]) == 1
        assert set(found) == {
            "weekly",
            "hourlyDistribution",
            "powerHistory",
            "dailyHistory",
            "brewHistory",
        }
        day = day_of(now_ms(), 3600)
        usage = Usage(
            device_id=MACHINE,
            day=day,
            began_at_ms=now_ms(),
            at_ms=now_ms(),
            on_s=5400,
            steam_cycles=2,
            energy_mwh=0,
            counter_mwh=1_234_567,
        )
        await house.store.write(add_usage, [replace(usage, day=day - 40, at_ms=0), usage])
        *before, today = (await house.ask("GET", "/stats/extended")).content["dailyHistory"]
        assert (today["totalKwh"], today["onTimeMinutes"], today["steamCycles"]) == (1.235, 90, 2)
        assert {each["onTimeMinutes"] for each in before} == {0}
        assert (await house.ask("GET", f"/stats/extended?device={SECOND}")).content["brewHistory"] == []
        assert (await house.ask("GET", f"/stats/extended?device={STRANGE}")).status == 404
        await house.signed_in("eve")
        await house.store.write(record_attached, {"session of eve": MACHINE})
        assert (await house.ask("GET", "/stats/extended", by="eve")).status == 404, "her access has ended"
        assert (await house.ask("GET", "/stats/extended", by=None)).status == 401


async def test_app_reads_statistics_with_its_cookie_and_no_cache_keeps_them(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.store.write(add_shots, [shot(now_ms(), weight=36.0)], kept=10)
        for user_id in ("ada", "eve"):
            await house.signed_in(user_id)
            await house.store.write(record_attached, {f"session of {user_id}": MACHINE})
        found = {}
        for user_id in ("ada", "eve"):
            cookie = make_cookie(
                house.keys,
                session_id=f"session of {user_id}",
                user_id=user_id,
                expires_at_s=now_ms() // 1000 + 60,
            )
            response = await house.app.test_client().get(
                "/api/stats/extended", headers={"Cookie": f"{COOKIE}={cookie}"}
            )
            found[user_id] = (response.status_code, (await response.get_json()).get("brewHistory"))
            if user_id == "ada":
                assert response.headers["Vary"] == "*"
        assert found["ada"][0] == 200
        assert len(found["ada"][1]) == 1
        assert found["eve"] == (404, None)
        assert (await house.ask("GET", "/devices", by=None)).status == 401, "no other route takes it"
