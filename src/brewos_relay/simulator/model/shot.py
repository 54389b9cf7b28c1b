"""A shot: pressure, flow and weight from the first drop of water to the last drop of coffee."""

import math
import random
from dataclasses import dataclass
from typing import Final

PUMP_W: Final = 55.0
LONGEST_S: Final = 60.0
PUMP_BAR: Final = 9.0
_PREINFUSION_BAR: Final = 3.0
_RAMP_S: Final = 1.6
_FALL_S: Final = 2.5
_SOAK_ML: Final = 12.0  # what the coffee drinks before the first drop


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a shot is made: pre-infusion in s (0: none), and the weight at which the pump stops."""

    preinfusion_s: float
    pause_s: float
    stop_at_g: float


class Shot:
    """One shot that is going on. Made anew for each."""

    __slots__ = (
        "_flow_trim",
        "_pumped_ml",
        "_random",
        "_recipe",
        "elapsed_s",
        "flow_g_per_s",
        "pressure_bar",
        "weight_g",
    )

    def __init__(self, recipe: Recipe, *, chance: random.Random) -> None:
        self._recipe = recipe
        self._random = chance
        self._flow_trim = chance.uniform(0.9, 1.12)  # how the coffee was ground today
        self._pumped_ml = 0.0
        self.elapsed_s = 0.0
        self.pressure_bar = 0.0
        self.flow_g_per_s = 0.0
        self.weight_g = 0.0

    @property
    def done(self) -> bool:
        """Whether the cup has what it should have."""
        return self.weight_g >= self._recipe.stop_at_g or self.elapsed_s >= LONGEST_S

    def step(self, dt_s: float) -> float:
        """Go on for `dt_s`; gives the water that the pump moved, in ml/s."""
        self.elapsed_s += dt_s
        recipe = self._recipe
        brewing_s = self.elapsed_s - recipe.preinfusion_s - recipe.pause_s
        if brewing_s > 0:
            # The puck gives way little by little: less pressure, more flow.
            goal_bar, pace_s = PUMP_BAR - 0.012 * brewing_s, _RAMP_S
        elif self.elapsed_s <= recipe.preinfusion_s:
            goal_bar, pace_s = _PREINFUSION_BAR, _RAMP_S / 2
        else:
            goal_bar, pace_s = 1.8, _FALL_S
        noise_bar = self._random.gauss(0.0, 0.02 * self.pressure_bar / PUMP_BAR)
        self.pressure_bar += (goal_bar - self.pressure_bar) * (1.0 - math.exp(-dt_s / pace_s)) + noise_bar
        self.pressure_bar = min(12.0, max(0.0, self.pressure_bar))
        pushes = self.pressure_bar / PUMP_BAR
        water_ml_per_s = 2.4 * self._flow_trim * math.sqrt(pushes) if goal_bar > 1.8 else 0.0
        self._pumped_ml += water_ml_per_s * dt_s
        opened = min(1.0, max(0.0, (self._pumped_ml - _SOAK_ML) / 14.0))
        eases = 1.0 + 0.006 * max(0.0, brewing_s)
        goal_g_per_s = 1.85 * self._flow_trim * pushes * opened * eases
        self.flow_g_per_s += (goal_g_per_s - self.flow_g_per_s) * (1.0 - math.exp(-dt_s / 1.2))
        self.weight_g += self.flow_g_per_s * dt_s
        return max(water_ml_per_s if opened < 1.0 else 0.0, self.flow_g_per_s)
