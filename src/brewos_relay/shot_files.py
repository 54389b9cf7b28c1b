"""Shots: made from the runs of a machine, stored with a compressed profile, and exported as files."""

import csv
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec

from brewos_relay.core.history import Run
from brewos_relay.dialect import BREWOS
from brewos_relay.registry.records import Shot
from brewos_relay.vocabulary import iso_time

ShotFormat: TypeAlias = Literal["json", "csv", "visualizer"]
"""The formats of files. That of Visualizer is the one that Decent machines write."""

MOST_SAMPLES: Final = 600
"""A profile with more is thinned out."""
_MOST_PROFILE_BYTES: Final = 1024 * 1024


class Profile(msgspec.Struct, frozen=True, rename="camel"):
    """The measurements of a shot. A value is null if it is unknown, and holds until the next sample."""

    times_ms: Sequence[int]
    """When each sample was taken, from the start of the shot."""
    values: Mapping[str, Sequence[float | None]]
    """A list for each quantity."""


_decode_profile: Final = msgspec.json.Decoder(Profile).decode


def shot_of(device_id: str, run: Run, *, began_at_ms: int, dose_g: float | None) -> Shot:
    """Make the shot of a run. `dose_g` is the weight of the ground coffee, if the machine knows it."""
    step = -(-len(run.samples.times_s) // MOST_SAMPLES) or 1
    profile = Profile(
        [max(0, round((at - run.began_at) * 1000)) for at in run.samples.times_s[::step]],
        {name: column[::step] for name, column in run.samples.values.items()},
    )
    return Shot(
        device_id=device_id,
        began_at_ms=began_at_ms,
        duration_ms=round((run.ended_at - run.began_at) * 1000),
        is_complete=run.complete,
        summary=_summary(run, dose_g),
        profile=zlib.compress(msgspec.json.encode(profile)),
    )


def _summary(run: Run, dose_g: float | None) -> dict[str, float]:
    """Sum a run up: the weight in the end, and the others while the machine brewed."""

    def brewing(name: str) -> list[float]:
        column = zip(run.samples.values[name], run.samples.at_work, strict=True)
        return [value for value, at_work in column if value is not None and at_work]

    weights = [value for value in run.samples.values["weight"] if value is not None]
    flows = [value for value in brewing("flow") if value > 0]
    figures: dict[str, float | None] = {
        "weight": max(weights, default=None),
        "dose": dose_g,
        "peakPressure": max(brewing("pressure"), default=None),
        "averagePressure": _mean(brewing("pressure")),
        "averageTemp": _mean(brewing("brewTemp") or brewing("groupTemp")),
        "averageFlow": _mean(flows),
    }
    return {name: round(value, 2) for name, value in figures.items() if value is not None}


def profile_of(shot: Shot) -> Profile:
    """Read the profile of a stored shot. It is empty if it cannot be read."""
    try:
        content = zlib.decompressobj().decompress(shot.profile, _MOST_PROFILE_BYTES)
        return _decode_profile(content)
    except (zlib.error, msgspec.MsgspecError, RecursionError, ValueError):
        return Profile((), {})


def file_name(shot: Shot, extension: str) -> str:
    """Return a name for the file of a shot."""
    began_at = datetime.fromtimestamp(shot.began_at_ms / 1000, UTC)
    return f"{shot.device_id}-{began_at:%Y%m%d-%H%M%S}.{extension}"


def shot_file(shot: Shot, file_format: ShotFormat, *, machine: str) -> tuple[bytes, str, str]:
    """Write the file of a shot: its content, its media type, and the extension of its name.

    `machine` is the name of the machine.
    """
    profile = profile_of(shot)
    if file_format == "csv":
        return _csv_file(profile).encode(), "text/csv; charset=utf-8", "csv"
    write: Callable[[Shot, Profile, str], Any]
    write = _visualizer_file if file_format == "visualizer" else shot_content
    extension = "visualizer.json" if file_format == "visualizer" else "json"
    return msgspec.json.encode(write(shot, profile, machine)), "application/json", extension


def shot_content(shot: Shot, profile: Profile, machine: str) -> dict[str, Any]:
    """Return the content of the JSON file."""
    return {
        "deviceId": shot.device_id,
        "machine": machine,
        "id": shot.id,
        "at": iso_time(shot.began_at_ms),
        "durationMs": shot.duration_ms,
        "complete": shot.is_complete,
        "summary": shot.summary,
        "units": {measure.name: measure.unit for measure in BREWOS.measures},
        "profile": profile,
    }


def _csv_file(profile: Profile) -> str:
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\r\n")
    measures = [measure for measure in BREWOS.measures if measure.name in profile.values]
    table.writerow(["time (s)", *(f"{measure.name} ({measure.unit})" for measure in measures)])
    columns = [profile.values[measure.name] for measure in measures]
    for at_ms, *values in zip(profile.times_ms, *columns, strict=False):
        table.writerow([at_ms / 1000, *("" if value is None else value for value in values)])
    return written.getvalue()


def _visualizer_file(shot: Shot, profile: Profile, machine: str) -> dict[str, Any]:
    """Return the content of a shot file of a Decent machine, version 2, as far as this machine knows it.

    The flow is that into the cup, which the scale measures. Programs that read such files expect a number for
    each sample, so the value before stands for an unknown one.
    """

    def column(name: str) -> list[float]:
        found, before = [], 0.0
        for value in profile.values.get(name, ()):
            before = value if value is not None else before
            found.append(before)
        return found

    settings = {"drink_weight": shot.summary.get("weight"), "grinder_dose_weight": shot.summary.get("dose")}
    return {
        "version": 2,
        "clock": shot.began_at_ms // 1000,
        "timestamp": shot.began_at_ms // 1000,
        "date": iso_time(shot.began_at_ms),
        "elapsed": [at_ms / 1000 for at_ms in profile.times_ms],
        "pressure": {"pressure": column("pressure")},
        "flow": {"by_weight": column("flow")},
        "temperature": {"basket": column("groupTemp"), "mix": column("brewTemp")},
        "totals": {"weight": column("weight")},
        "profile": {"title": machine},
        "app": {
            "app_name": "brewos-relay",
            "data": {"settings": {name: f"{value:g}" for name, value in settings.items() if value}},
        },
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
