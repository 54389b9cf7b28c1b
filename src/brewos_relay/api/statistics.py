"""/api/stats/extended: statistics of a machine's shots, as the BrewOS app reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.app_cookie import AppAuthenticator, not_kept
from brewos_relay.api.authentication import Authenticator, Requester
from brewos_relay.api.device_access import require_access
from brewos_relay.api.openapi import described, make_blueprint
from brewos_relay.api.payloads import json_answer, query_of
from brewos_relay.live_devices import DeviceHistory
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.daily_usage import usage_of
from brewos_relay.registry.login_sessions import last_device_of
from brewos_relay.registry.records import DayUsage, Shot
from brewos_relay.registry.shots import shots_of, users_since_ms
from brewos_relay.vocabulary import now_ms

_DAYS: Final = 30
_SHOTS_AT_MOST: Final = 5000
_LISTED_SHOTS: Final = 100
_DAY_S: Final = 24 * 3600
_POWER_S: Final = 300
_POWER_KEPT_S: Final = 3600.0
_W_S_PER_KWH: Final = 3_600_000
_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_THURSDAY: Final = 3
"""The weekday of day 0 of the epoch."""
_MOST_OFFSET_MINUTES: Final = 18 * 60


class StatisticsQuery(msgspec.Struct):
    """The device. Without it, the one that the login session attached to last."""

    device: Annotated[str, msgspec.Meta(max_length=12)] | None = None


class DayShots(msgspec.Struct):
    """The shots of a weekday."""

    day: str
    shots: int


class HourCount(msgspec.Struct):
    """The shots that began in an hour of the day."""

    hour: int
    count: int


class PowerSample(msgspec.Struct, rename="camel", kw_only=True):
    """The power in five minutes from `timestamp` on, in s since the epoch."""

    timestamp: int
    avg_watts: float
    max_watts: float
    kwh_consumed: float


class DaySummary(msgspec.Struct, rename="camel", kw_only=True):
    """A day that began at `date`, in s since the epoch."""

    date: int
    shot_count: int
    total_brew_time_ms: int
    avg_brew_time_ms: int
    total_kwh: float
    on_time_minutes: int
    steam_cycles: int


class BrewRecord(msgspec.Struct, rename="camel", kw_only=True):
    """A shot. Unknown figures are 0."""

    timestamp: int
    duration_ms: int
    yield_weight: float
    dose_weight: float
    peak_pressure: float
    avg_temperature: float
    avg_flow_rate: float
    rating: int = 0
    ratio: float


class Statistics(msgspec.Struct, rename="camel", kw_only=True):
    """Statistics of the last 30 days by the clock of the machine. `weekly` are the last seven days."""

    weekly: list[DayShots]
    hourly_distribution: list[HourCount]
    power_history: list[PowerSample]
    daily_history: list[DaySummary]
    brew_history: list[BrewRecord]


@dataclass(frozen=True, kw_only=True, eq=False)
class StatisticsRoutes:
    """The route of statistics. Every user of a device may read them."""

    relay: RelayView
    store: Registry
    authenticator: Authenticator
    app_authenticator: AppAuthenticator

    def blueprint(self) -> Blueprint:
        """Make the blueprint of this route."""
        return make_blueprint("statistics", {"GET /api/stats/extended": self.extended})

    @described(
        "Read statistics of a device: of the one that your login session attached to last, if you name none",
        answer=Statistics,
        query=StatisticsQuery,
        refusals=[403, 404],
    )
    async def extended(self) -> Response:
        has_token = "Authorization" in request.headers
        requester = await (self.authenticator if has_token else self.app_authenticator)(request)
        answer = json_answer(await self._statistics(requester))
        return answer if has_token else not_kept(answer)

    async def _statistics(self, requester: Requester) -> Statistics:
        device_id = query_of(request, StatisticsQuery).device
        if device_id is None and requester.session_id is not None:
            device_id = await self.store.read(last_device_of, requester.session_id)
        at_ms = now_ms()
        if device_id is None:
            return statistics_of([], None, offset_s=0, now_ms=at_ms)
        device_id = (await require_access(requester, device_id, store=self.store)).device_id
        since_ms = await self.store.read(users_since_ms, device_id)
        from_ms = max(since_ms, at_ms - _DAYS * _DAY_S * 1000)
        shots = await self.store.read(shots_of, device_id, from_ms=from_ms, limit=_SHOTS_AT_MOST)
        history = await self.relay.history_of(device_id, seconds=_POWER_KEPT_S)
        state = await self.relay.state_of(device_id)
        offset_s = offset_of((state or {}).get("messages", {}).get("device_info"))
        first_day = day_of(at_ms, offset_s) - _DAYS + 1
        usage = await self.store.read(usage_of, device_id, from_day=first_day)
        return statistics_of(shots, history, usage, offset_s=offset_s, now_ms=at_ms, since_ms=since_ms)


def offset_of(info: Any) -> int:
    """Return how far the clock of a machine is ahead of UTC, in s, by its `device_info`; 0 if unknown."""
    time = info.get("time") if isinstance(info, dict) else None
    if not isinstance(time, dict):
        return 0
    names = ("utcOffsetMinutes", "dstOffsetMinutes") if time.get("dstEnabled") else ("utcOffsetMinutes",)
    total = 0.0
    for minutes in map(time.get, names):
        if isinstance(minutes, int | float) and abs(minutes) <= _MOST_OFFSET_MINUTES:
            total += minutes
    return round(total * 60)


def statistics_of(
    shots: Sequence[Shot],
    history: DeviceHistory | None,
    usage: Sequence[DayUsage] = (),
    *,
    offset_s: int,
    now_ms: int,
    since_ms: int = 0,
) -> Statistics:
    """Sum up shots, newest first, the power since `since_ms`, and the usage of days."""
    today = day_of(now_ms, offset_s)
    used = {each.day: each for each in usage}
    by_day: dict[int, list[Shot]] = {}
    hours = [0] * 24
    for shot in shots:
        by_day.setdefault(day_of(shot.began_at_ms, offset_s), []).append(shot)
        hours[(shot.began_at_ms // 1000 + offset_s) % _DAY_S // 3600] += 1
    week = {(day + _THURSDAY) % 7: len(by_day.get(day, ())) for day in range(today - 6, today + 1)}
    return Statistics(
        weekly=[DayShots(name, week[number]) for number, name in enumerate(_WEEKDAYS)],
        hourly_distribution=[HourCount(hour, count) for hour, count in enumerate(hours)],
        power_history=_power(history, since_ms=since_ms) if history is not None else [],
        daily_history=[
            _summary(day * _DAY_S - offset_s, by_day.get(day, ()), used.get(day))
            for day in range(today - _DAYS + 1, today + 1)
        ],
        brew_history=[_record(shot) for shot in shots[:_LISTED_SHOTS]],
    )


def day_of(at_ms: int, offset_s: int) -> int:
    """Return the day by a clock that is ahead of UTC, in days since the epoch."""
    return (at_ms // 1000 + offset_s) // _DAY_S


def _summary(date_s: int, shots: Sequence[Shot], usage: DayUsage | None) -> DaySummary:
    total_ms = sum(shot.duration_ms for shot in shots)
    return DaySummary(
        date=date_s,
        shot_count=len(shots),
        total_brew_time_ms=total_ms,
        avg_brew_time_ms=total_ms // len(shots) if shots else 0,
        total_kwh=round(usage.energy_mwh / 1_000_000, 3) if usage is not None else 0.0,
        on_time_minutes=round(usage.on_s / 60) if usage is not None else 0,
        steam_cycles=usage.steam_cycles if usage is not None else 0,
    )


def _record(shot: Shot) -> BrewRecord:
    known: Mapping[str, float] = shot.summary
    weight, dose = known.get("weight", 0.0), known.get("dose", 0.0)
    return BrewRecord(
        timestamp=shot.began_at_ms // 1000,
        duration_ms=shot.duration_ms,
        yield_weight=weight,
        dose_weight=dose,
        peak_pressure=known.get("peakPressure", 0.0),
        avg_temperature=known.get("averageTemp", 0.0),
        avg_flow_rate=known.get("averageFlow", 0.0),
        ratio=round(weight / dose, 2) if dose > 0 else 0.0,
    )


def _power(history: DeviceHistory, *, since_ms: int) -> list[PowerSample]:
    """Average the power over five minutes each. A value holds until the next sample."""
    watts = history.values.get("power", ())
    ends_ms = [*history.times_ms[1:], history.at_ms]
    spans: dict[int, list[tuple[float, float]]] = {}
    for begin_ms, end_ms, value in zip(history.times_ms, ends_ms, watts, strict=False):
        at_ms = max(begin_ms, since_ms)
        while value is not None and at_ms < end_ms:
            slot = at_ms // 1000 // _POWER_S * _POWER_S
            until_ms = min(end_ms, (slot + _POWER_S) * 1000)
            spans.setdefault(slot, []).append((value, (until_ms - at_ms) / 1000))
            at_ms = until_ms
    return [
        PowerSample(
            timestamp=slot,
            avg_watts=round(sum(value * s for value, s in found) / sum(s for _, s in found), 1),
            max_watts=max(value for value, _ in found),
            kwh_consumed=round(sum(value * s for value, s in found) / _W_S_PER_KWH, 4),
        )
        for slot, found in sorted(spans.items())
    ]
