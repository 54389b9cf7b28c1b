"""Recorded shots for tests of pages."""

import math
from typing import Final

from sqlalchemy import update

from brewos_relay.core.history import Run, Samples
from brewos_relay.registry.records import Shot
from brewos_relay.registry.schema import device_users
from brewos_relay.registry.shots import add_shots
from brewos_relay.server.assembly import Server
from brewos_relay.shot_files import shot_of
from brewos_relay.vocabulary import now_ms

_APART_S: Final = 0.25
_TAIL_S: Final = 5.0
_FILLED_S: Final = 7.0
"""When the first drop falls."""


def recorded_shot(
    device_id: str,
    *,
    began_at_ms: int,
    seconds: float = 28.0,
    weight_g: float = 36.0,
    peak_bar: float = 9.0,
    brew_c: float = 93.0,
) -> Shot:
    """Make a shot: preinfusion at 3 bar, a rise to the peak, and a slow fall."""
    times_s = [number * _APART_S for number in range(round((seconds + _TAIL_S) / _APART_S))]
    flow = [0.0 if not _FILLED_S <= at < seconds else weight_g / (seconds - _FILLED_S) for at in times_s]
    samples = Samples(
        times_s,
        [at < seconds for at in times_s],
        [True] * len(times_s),
        {
            "pressure": [_pressure(at, seconds, peak_bar) for at in times_s],
            "flow": [round(value, 2) for value in flow],
            "weight": [round(sum(flow[:number]) * _APART_S, 1) for number in range(1, len(flow) + 1)],
            "brewTemp": [round(brew_c + math.sin(at / 4) / 2, 2) for at in times_s],
            "steamTemp": [140.0] * len(times_s),
            "groupTemp": [round(brew_c - 2 + at / 30, 2) for at in times_s],
            "power": [1200.0] * len(times_s),
        },
    )
    run = Run(0.0, seconds, True, samples)
    return shot_of(device_id, run, began_at_ms=began_at_ms, dose_g=18.0)


def _pressure(at: float, seconds: float, peak_bar: float) -> float:
    if at >= seconds:
        return 0.0
    if at < _FILLED_S:
        return min(3.0, at)
    return min(peak_bar, 3.0 + 2 * (at - _FILLED_S))


async def add_recorded_shots(server: Server, *shots: Shot) -> None:
    """Store shots. The users of all machines have had them for a week."""
    week_ms = 7 * 86_400_000
    earlier = update(device_users).values(claimed_at_ms=now_ms() - week_ms)
    await server.store.write(lambda db: db.execute(earlier))
    await server.store.write(add_shots, shots, kept=1000)
