"""Water: the tank, the pump, the shot, the cup and the scale."""

import math
import random
from dataclasses import dataclass
from typing import Final

TANK_ML: Final = 2000.0
TANK_LOW_ML: Final = 400.0
TANK_EMPTY_ML: Final = 80.0

_CUP_S: Final = 15.0  # how long a full cup stays on the scale
_DRIP_S: Final = 4.0
_COFFEE_G: Final = 5.0  # a smaller shot does not drip
_J_PER_ML_K: Final = 4.18

PUMP_W: Final = 55.0
LONGEST_S: Final = 60.0
PUMP_BAR: Final = 9.0
_PREINFUSION_BAR: Final = 3.0
_RAMP_S: Final = 1.6
_FALL_S: Final = 2.5
_SOAK_ML: Final = 12.0  # water that the coffee absorbs before the first drop


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The settings of a shot: pre-infusion in s (0: none), and the weight at which the pump stops."""

    preinfusion_s: float
    pause_s: float
    stop_at_g: float


class Shot:
    """A shot in progress."""

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

    def __init__(self, recipe: Recipe, *, rng: random.Random) -> None:
        self._recipe = recipe
        self._random = rng
        self._flow_trim = rng.uniform(0.9, 1.12)  # variation of the grind
        self._pumped_ml = 0.0
        self.elapsed_s = 0.0
        self.pressure_bar = 0.0
        self.flow_g_per_s = 0.0
        self.weight_g = 0.0

    @property
    def done(self) -> bool:
        """Whether the shot has reached its weight or its longest duration."""
        return self.weight_g >= self._recipe.stop_at_g or self.elapsed_s >= LONGEST_S

    def step(self, dt_s: float) -> float:
        """Advance by `dt_s`; return the flow of water through the pump, in ml/s."""
        self.elapsed_s += dt_s
        recipe = self._recipe
        brewing_s = self.elapsed_s - recipe.preinfusion_s - recipe.pause_s
        if brewing_s > 0:
            # The puck erodes: less pressure, more flow.
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


class Water:
    """The water in the tank, under pressure, and in the cup; `shot` is the one in progress."""

    __slots__ = (
        "_after_shot_s",
        "_drip_g",
        "_rng",
        "_tare_g",
        "flow_g_per_s",
        "pressure_bar",
        "scale_connected",
        "shot",
        "tank_ml",
        "weight_g",
    )

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.tank_ml = TANK_ML
        self.scale_connected = True
        self.shot: Shot | None = None
        self.pressure_bar = 0.0
        self.flow_g_per_s = 0.0
        self.weight_g = 0.0
        self._tare_g = 0.0
        self._after_shot_s = 0.0
        self._drip_g = 0.0

    @property
    def at_rest(self) -> bool:
        """Whether nothing flows or drips, and no cup is on the scale."""
        return self.shot is None and self._after_shot_s <= 0.0

    @property
    def level(self) -> str:
        """The level of the tank, as the machine reports it."""
        if self.tank_ml > TANK_LOW_ML:
            return "ok"
        return "low" if self.tank_ml > TANK_EMPTY_ML else "empty"

    def begin(self, recipe: Recipe, *, tares: bool) -> None:
        """Start a shot."""
        self.shot = Shot(recipe, rng=self._rng)
        self._tare_g = 0.0 if tares else self.weight_g

    def end(self) -> Shot | None:
        """Stop the pump; return the shot that this ends, if any."""
        shot, self.shot = self.shot, None
        if shot is not None:
            self._after_shot_s = _CUP_S
            self._drip_g = self._rng.uniform(1.0, 2.0) if shot.weight_g > _COFFEE_G else 0.0
        return shot

    def step(self, dt_s: float, *, warms_by_c: float) -> float:
        """Advance by `dt_s`; return the power in W to warm the flowing water by `warms_by_c`."""
        shot = self.shot
        if shot is not None:
            water_ml_per_s = shot.step(dt_s)
            self.tank_ml = max(0.0, self.tank_ml - water_ml_per_s * dt_s)
            self.pressure_bar, self.flow_g_per_s = shot.pressure_bar, shot.flow_g_per_s
            if self.scale_connected:
                self.weight_g = self._tare_g + shot.weight_g
            return _J_PER_ML_K * water_ml_per_s * max(0.0, warms_by_c)
        if self.pressure_bar > 0.0:
            self.pressure_bar = max(0.0, self.pressure_bar * (1.0 - min(1.0, dt_s * 1.5)) - 0.02 * dt_s)
        if self._after_shot_s > 0.0:
            drips = self._after_shot_s > _CUP_S - _DRIP_S
            self.flow_g_per_s = self._drip_g / _DRIP_S if drips else 0.0
            if self.scale_connected:
                self.weight_g += self.flow_g_per_s * dt_s
            self._after_shot_s -= dt_s
            if self._after_shot_s <= 0.0:
                self.weight_g = self.flow_g_per_s = 0.0  # the cup is removed
        return 0.0
