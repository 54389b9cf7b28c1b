"""Boilers: a heater, a mass of water, heat loss, and an imperfect controller; and their share of the power.

The heating element stores heat and releases it slowly, and the sensor lags behind the water. So the
controller overshoots a little after heating up, and oscillates around its setpoint.
"""

import math
from dataclasses import dataclass, field
from typing import Final

#: The longest time step of a heated boiler; one that is off can take longer steps.
HEATED_STEP_S: Final = 0.25

_ELEMENT_S: Final = 9.0  # the time constant of the element
_SENSOR_S: Final = 3.0
_GAIN_PER_C: Final = 0.22  # fraction of the heater's power per °C below the target
_INTEGRAL_PER_C_S: Final = 0.0022
_INTEGRATED_WITHIN_C: Final = 4.0
_INTEGRAL_MOST: Final = 0.35
_FORGETS_S: Final = 500.0  # the integral decays, so that an idle boiler droops slightly
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
    """A vessel of water with a heater and a sensor.

    `temp_c` is the temperature of the water, `sensor_c` the reading of the sensor. The energy of the heater
    is in the element, in the water, or lost: `given_j` = `element_j` + the water's + `lost_j`.
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
        """The power of the heater."""
        return self.duty * self.heater_w

    @property
    def target_c(self) -> float:
        """The setpoint, limited to a safe temperature."""
        return min(self.setpoint_c, self.limit_c - 2.0)

    def want(self, target_c: float | None, dt_s: float, *, error_c: float) -> float:
        """Decide once a second on the power in W to reach `target_c` (None: off).

        `error_c` is the error of the sensor.
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
        # The hardware thermostat.
        return self._wanted if self.temp_c < self.limit_c - 0.5 else 0.0

    def step(self, dt_s: float, *, power_w: float, draw_w: float = 0.0) -> None:
        """Heat with `power_w` while leaving water or steam takes `draw_w`."""
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
    """Return the power in W for each boiler, limited by its demand and together by `budget_w`.

    While the machine heats up (`heating`), strategy 1 delays the steam boiler, and strategy 3 alternates
    between the two. Strategy 0 never heats the steam boiler. The brew boiler has priority.
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
