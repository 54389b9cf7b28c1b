"""Boilers: a heater, a mass of water, a loss to the room, and a controller that is good but not perfect.

The heater's element stores heat and gives it away late, and the sensor follows the water late: a controller
that only sees the sensor overshoots a little when it has heated up, and hunts around its setpoint afterwards.
"""

import math
from dataclasses import dataclass, field
from typing import Final

#: The longest step of a boiler that is heated; one that is off can take longer ones.
HEATED_STEP_S: Final = 0.25

_ELEMENT_S: Final = 9.0  # how long the element takes to give away most of its heat
_SENSOR_S: Final = 3.0
_GAIN_PER_C: Final = 0.22  # part of the heater's power for each °C that is missing
_INTEGRAL_PER_C_S: Final = 0.0022
_INTEGRATED_WITHIN_C: Final = 4.0
_INTEGRAL_MOST: Final = 0.35
_FORGETS_S: Final = 500.0  # the integral leaks, so that an idle boiler droops by a bit
_CONTROL_S: Final = 1.0

_ELEMENT_STEP: Final = 1.0 - math.exp(-HEATED_STEP_S / _ELEMENT_S)
_SENSOR_STEP: Final = 1.0 - math.exp(-HEATED_STEP_S / _SENSOR_S)

BREW_ONLY: Final = 0
SEQUENTIAL: Final = 1
PARALLEL: Final = 2
STAGGERED: Final = 3
STRATEGIES: Final = range(4)

_TURN_S: Final = 12.0
_BREW_TURN_S: Final = 8.0


@dataclass(slots=True, kw_only=True)
class Boiler:
    """A vessel of water with a heater and a sensor. `temp_c` is the water, `sensor_c` what is known of it.

    What the heater took is in the element, in the water, or lost: `given_j` = `element_j` + the water's +
    `lost_j`.
    """

    heater_w: float
    capacity_j_per_k: float
    loss_w_per_k: float
    limit_c: float
    setpoint_c: float
    ambient_c: float
    temp_c: float = field(init=False)
    sensor_c: float = field(init=False)
    duty: float = 0.0
    element_j: float = 0.0
    given_j: float = 0.0
    lost_j: float = 0.0
    _integral: float = 0.0
    _wanted: float = 0.0
    _decided_s: float = 0.0

    def __post_init__(self) -> None:
        self.temp_c = self.sensor_c = self.ambient_c

    @property
    def power_w(self) -> float:
        """What the heater takes."""
        return self.duty * self.heater_w

    @property
    def target_c(self) -> float:
        """The setpoint, as far as this boiler can safely be heated."""
        return min(self.setpoint_c, self.limit_c - 2.0)

    def want(self, target_c: float | None, dt_s: float, *, error_c: float) -> float:
        """Decide, once a second, on the power in W that it takes to get to `target_c` (None: off).

        The sensor errs by `error_c`.
        """
        if target_c is None:
            self._integral = self._wanted = self._decided_s = 0.0
            return 0.0
        self._decided_s -= dt_s
        if self._decided_s <= 0.0:
            self._decided_s += _CONTROL_S
            missing_c = target_c - (self.sensor_c + error_c)
            if abs(missing_c) < _INTEGRATED_WITHIN_C:
                gained = missing_c * _INTEGRAL_PER_C_S - self._integral / _FORGETS_S
                self._integral = min(_INTEGRAL_MOST, max(0.0, self._integral + gained * _CONTROL_S))
            self._wanted = min(1.0, max(0.0, missing_c * _GAIN_PER_C + self._integral)) * self.heater_w
        # The thermostat that no software overrules.
        return self._wanted if self.temp_c < self.limit_c - 0.5 else 0.0

    def step(self, dt_s: float, *, power_w: float, draw_w: float = 0.0) -> None:
        """Heat with `power_w` while `draw_w` is taken out by water or steam that leaves."""
        self.duty = power_w / self.heater_w
        given_j = power_w * dt_s
        self.given_j += given_j
        exact = dt_s == HEATED_STEP_S
        moved = _ELEMENT_STEP if exact else 1.0 - math.exp(-dt_s / _ELEMENT_S)
        followed = _SENSOR_STEP if exact else 1.0 - math.exp(-dt_s / _SENSOR_S)
        moved_j = (self.element_j + given_j) * moved
        self.element_j += given_j - moved_j
        lost_j = (self.loss_w_per_k * (self.temp_c - self.ambient_c) + draw_w) * dt_s
        self.lost_j += lost_j
        self.temp_c += (moved_j - lost_j) / self.capacity_j_per_k
        self.sensor_c += (self.temp_c - self.sensor_c) * followed


def share_power(
    brew_w: float, steam_w: float, *, strategy: int, budget_w: float, heating: bool, clock_s: float
) -> tuple[float, float]:
    """Give what each boiler gets of the W that it wants; never more than `budget_w` together.

    While the machine heats up (`heating`), strategy 1 lets the steam boiler wait, and strategy 3 lets the
    two take turns, so that never both of them draw. Strategy 0 never heats it. The brew boiler comes first.
    """
    budget_w = max(0.0, budget_w)
    if strategy == BREW_ONLY or (strategy == SEQUENTIAL and heating):
        steam_w = 0.0
    elif strategy == STAGGERED and brew_w and steam_w:
        if clock_s % _TURN_S < _BREW_TURN_S:
            steam_w = 0.0
        else:
            brew_w = 0.0
    brew_w = min(brew_w, budget_w)
    return brew_w, min(steam_w, budget_w - brew_w)
