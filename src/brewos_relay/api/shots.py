"""The measurements of a device in the last minutes, and its shots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from quart import Blueprint, Response, current_app, request

from brewos_relay.api.authentication import Authenticator
from brewos_relay.api.device_access import DeviceAccess, require_access
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import Refused, json_answer, query_of
from brewos_relay.dialect import BREWOS
from brewos_relay.live_devices import DeviceHistory
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.records import Shot
from brewos_relay.registry.shots import delete_shot, find_shot, shots_of, users_since_ms
from brewos_relay.shot_files import Profile, ShotFormat, file_name, profile_of, shot_file
from brewos_relay.vocabulary import iso_time, now_ms

_GREATEST_ID: Final = 2**63 - 1
_Time = Annotated[int, msgspec.Meta(ge=0, le=_GREATEST_ID)]
_NO_SHOT: Final = "There is no such shot."


class HistoryQuery(msgspec.Struct, rename="camel"):
    """The number of seconds to read. The relay may keep fewer.

    While the device does not brew, samples are at least `apartMs` apart.
    """

    seconds: Annotated[float, msgspec.Meta(gt=0, le=86_400)] = 86_400.0
    apart_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 0


class MeasureAnswer(msgspec.Struct):
    """A quantity that is measured."""

    name: str
    unit: str


class HistoryAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """Measurements, oldest first; times are in ms since the epoch.

    A value holds until the next sample, and is null if it is unknown. The first sample may be older than the
    time asked for. `online` is false where the device went offline.
    """

    device_id: str
    at_ms: int
    measures: list[MeasureAnswer]
    times_ms: Sequence[int]
    brewing: Sequence[bool]
    online: Sequence[bool]
    values: Mapping[str, Sequence[float | None]]


class ShotQuery(msgspec.Struct, rename="camel"):
    """A page of shots: at most `limit`, older than the shot with the id `before`.

    `fromMs` and `untilMs` limit when they began.
    """

    before: Annotated[int, msgspec.Meta(ge=1, le=_GREATEST_ID)] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 100
    from_ms: _Time | None = None
    until_ms: _Time | None = None


class ShotAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A shot. `complete` is false if its start or its end was missed. `summary` has only known figures.

    In `summary`, `weight` and `dose` are in g, pressures in bar, `averageTemp` in °C, `averageFlow` in g/s.
    """

    id: int
    at: str
    began_at_ms: int
    duration_ms: int
    complete: bool
    summary: Mapping[str, float]


class Shots(msgspec.Struct):
    """Shots, newest first. `next` is the `before` of the next page, null on the last page."""

    shots: list[ShotAnswer]
    next: int | None


class OneShot(msgspec.Struct):
    """A shot with its profile."""

    shot: ShotAnswer
    measures: list[MeasureAnswer]
    profile: Profile


_MEASURES: Final = [MeasureAnswer(measure.name, measure.unit) for measure in BREWOS.measures]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShotRoutes:
    """The routes of measurements and shots. Every user of a device may read them; owners delete shots."""

    relay: RelayView
    store: Registry
    authenticator: Authenticator

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        shot = "/api/devices/<device:device_id>/shots/<int:shot_id>"
        return make_blueprint(
            "shots",
            {
                "GET /api/devices/<device:device_id>/history": self.history,
                "GET /api/devices/<device:device_id>/shots": self.shots,
                f"GET {shot}": self.shot,
                f"DELETE {shot}": self.delete,
                f"GET {shot}/json": self.json_file,
                f"GET {shot}/csv": self.csv_file,
                f"GET {shot}/visualizer": self.visualizer_file,
            },
        )

    @described(
        "Read the measurements of a device in the last minutes", answer=HistoryAnswer, query=HistoryQuery
    )
    async def history(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        asked = query_of(request, HistoryQuery)
        device_id = (await require_access(requester, device_id, store=self.store)).device_id
        # The machine may have stayed connected when its users changed.
        since_ms = await self.store.read(users_since_ms, device_id)
        found = await self.relay.history_of(device_id, seconds=asked.seconds) or DeviceHistory(now_ms())
        chosen = _chosen(found, since_ms=since_ms, apart_ms=asked.apart_ms)
        return json_answer(
            HistoryAnswer(
                device_id=device_id,
                at_ms=found.at_ms,
                measures=_MEASURES,
                times_ms=[found.times_ms[number] for number in chosen],
                brewing=[found.at_work[number] for number in chosen],
                online=[found.online[number] for number in chosen],
                values={
                    measure.name: [column[number] for number in chosen]
                    if (column := found.values.get(measure.name))
                    else []
                    for measure in BREWOS.measures
                },
            )
        )

    @described("List the shots of a device", answer=Shots, query=ShotQuery)
    async def shots(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        page = query_of(request, ShotQuery)
        device_id = (await require_access(requester, device_id, store=self.store)).device_id
        found = await self.store.read(
            shots_of,
            device_id,
            before_id=page.before,
            from_ms=page.from_ms,
            until_ms=page.until_ms,
            limit=page.limit,
        )
        more = found[-1].id if len(found) == page.limit else None
        return json_answer(Shots([_answer(shot) for shot in found], more))

    @described("Read a shot with its profile", answer=OneShot)
    async def shot(self, device_id: str, shot_id: int) -> Response:
        _, shot = await self._find(device_id, shot_id)
        return json_answer(OneShot(_answer(shot), _MEASURES, profile_of(shot)))

    @described("Delete a shot, as an owner of the device", answer=Done, refusals=[403])
    async def delete(self, device_id: str, shot_id: int) -> Response:
        requester = await self.authenticator(request)
        device_id = (await require_access(requester, device_id, store=self.store, at_least="owner")).device_id
        authority = Authority(requester.principal, device_id, "owner")
        if shot_id > _GREATEST_ID or not await self.store.write_as(
            authority, delete_shot, device_id, shot_id
        ):
            raise Refused(_NO_SHOT, status=404)
        return json_answer(Done())

    @described("Export a shot as a JSON file", answer=dict[str, Any])
    async def json_file(self, device_id: str, shot_id: int) -> Response:
        return await self._file(device_id, shot_id, "json")

    @described("Export the profile of a shot as a CSV file", answer=str, answer_media="text/csv")
    async def csv_file(self, device_id: str, shot_id: int) -> Response:
        return await self._file(device_id, shot_id, "csv")

    @described(
        "Export a shot as a file that visualizer.coffee imports, in the format of Decent machines",
        answer=dict[str, Any],
    )
    async def visualizer_file(self, device_id: str, shot_id: int) -> Response:
        return await self._file(device_id, shot_id, "visualizer")

    async def _file(self, device_id: str, shot_id: int, file_format: ShotFormat) -> Response:
        access, shot = await self._find(device_id, shot_id)
        name = access.device.name if access.device is not None else None
        content, media, extension = shot_file(shot, file_format, machine=name or shot.device_id)
        attached = f'attachment; filename="{file_name(shot, extension)}"'
        return current_app.response_class(
            content, content_type=media, headers={"Content-Disposition": attached}
        )

    async def _find(self, device_id: str, shot_id: int) -> tuple[DeviceAccess, Shot]:
        """Find a shot of a device that the requester has access to. Raises Refused."""
        access = await require_access(await self.authenticator(request), device_id, store=self.store)
        shot = None
        if shot_id <= _GREATEST_ID:
            shot = await self.store.read(find_shot, access.device_id, shot_id)
        if shot is None:
            raise Refused(_NO_SHOT, status=404)
        return access, shot


def _chosen(found: DeviceHistory, *, since_ms: int, apart_ms: int) -> list[int]:
    """Choose the samples since a time, by number.

    Those at rest are `apart_ms` apart, except the last one and those beside a change.
    """
    chosen: list[int] = []
    states = list(zip(found.at_work, found.online, strict=True))
    last = len(states) - 1
    for number, at_ms in enumerate(found.times_ms):
        if at_ms < since_ms:
            continue
        before, now, after = (states[max(0, number - 1)], states[number], states[min(last, number + 1)])
        is_needed = found.at_work[number] or number == last or not before == now == after
        if is_needed or not chosen or at_ms - found.times_ms[chosen[-1]] >= apart_ms:
            chosen.append(number)
    return chosen


def _answer(shot: Shot) -> ShotAnswer:
    return ShotAnswer(
        id=shot.id,
        at=iso_time(shot.began_at_ms),
        began_at_ms=shot.began_at_ms,
        duration_ms=shot.duration_ms,
        complete=shot.is_complete,
        summary=shot.summary,
    )
