"""The users of a simulated machine: they switch it on, pull shots, steam milk, fill the tank. No I/O."""

import math
import random
from typing import Final, Protocol

from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.model.water import TANK_ML

_STEAM_S: Final = 20.0
_ON_S: Final = 3600.0
_OFF_S: Final = 9 * 3600.0
_SHOT_S: Final = 600.0
_LONGEST_BEFORE_S: Final = 900.0


class UsagePattern(Protocol):
    """How a machine is used."""

    def begin(self, machine: Machine) -> None:
        """Prepare the machine. Called once, before the first `act`; not again after a restart."""

    def act(self, machine: Machine) -> float:
        """Use the machine if it is time; return the latest time of the next call, in s from now.

        Times are on the machine's clock.
        """


class Barista:
    """A user who pulls a shot when the machine has been ready for `shot_every_s`.

    The user steams milk after every second shot.
    """

    __slots__ = ("_shot_every_s", "_steams_next")

    def __init__(self, shot_every_s: float = math.inf) -> None:
        self._shot_every_s = shot_every_s
        self._steams_next = False

    def begin(self, machine: Machine) -> None:
        """Leave the machine as it is, switched on or off."""

    def act(self, machine: Machine) -> float:
        """Use the machine if it is time; return the latest time of the next call, in s from now.

        Times are on the machine's clock.
        """
        if machine.state == "ready" and machine.ready_s >= self._shot_every_s:
            if machine.water.level != "ok":
                machine.water.tank_ml = TANK_ML
            if machine.pull_shot():
                self._steams_next = not self._steams_next
        elif self._steams_next and machine.state == "ready" and 5.0 <= machine.ready_s < 10.0:
            machine.steam_milk(_STEAM_S)
        return math.inf


class Household:
    """A machine that is off for nine hours of ten, and on for one hour with a shot every ten minutes."""

    __slots__ = ("_next_shot_s", "_rng", "_switches_at_s")

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._switches_at_s = 0.0  # on the machine's uptime
        self._next_shot_s = 0.0

    def begin(self, machine: Machine) -> None:
        """Start at a random time of the day: one machine of ten is on already."""
        rng = self._rng
        if rng.random() < _ON_S / (_ON_S + _OFF_S):
            machine.switch_on()
            machine.step(rng.uniform(0.0, _LONGEST_BEFORE_S))
        self._plan(machine)

    def act(self, machine: Machine) -> float:
        """Use the machine if it is time; return the latest time of the next call, in s from now.

        Times are on the machine's clock.
        """
        if machine.uptime_s >= self._switches_at_s and machine.shot is None:
            if machine.state == "idle":
                machine.switch_on()
            else:
                machine.switch_off()
            self._plan(machine)
        elif machine.state == "ready" and machine.ready_s >= self._next_shot_s:
            if machine.water.level != "ok":
                machine.water.tank_ml = TANK_ML
            machine.pull_shot()
            self._next_shot_s = self._rng.expovariate(1.0 / _SHOT_S)
        return max(0.5, self._switches_at_s - machine.uptime_s)

    def _plan(self, machine: Machine) -> None:
        mean_s = _OFF_S if machine.state == "idle" else _ON_S
        self._switches_at_s = machine.uptime_s + self._rng.expovariate(1.0 / mean_s)
        self._next_shot_s = self._rng.expovariate(1.0 / _SHOT_S)
