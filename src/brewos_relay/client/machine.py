"""A dual-boiler espresso machine as a model: no I/O and no clock, time passes by `step`.

Each boiler is a heat capacity with a heater, a loss to the room and a controller that is proportional only,
so that it holds its temperature with a small droop. Figures are those of a domestic machine: 0.25 to 0.4 °C/s
when heating, about 1 °C/min when cooling down.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

AMBIENT_C: Final = 22.0
READY_BAND_C: Final = 1.0  # this near to its setpoint, the brew boiler is ready
LOST_BAND_C: Final = 3.0  # this far below it, the machine is heating again
SHOT_S: Final = 28.0
SHOT_WEIGHT_G: Final = 36.0
BREWS_BEFORE_CLEANING: Final = 100
_STEP_S: Final = 0.25  # the longest step that is calculated in one piece
_BAND_C: Final = 3.0  # from no heating at the setpoint to full heating this far below
_GROUP_LAG_S: Final = 90.0
_ELECTRONICS_W: Final = 5.0
_PUMP_W: Final = 55.0

_MODES: Final = {
    **dict.fromkeys(("on", "ready", "brew", "steam"), "on"),
    **dict.fromkeys(("off", "standby", "idle"), "standby"),
    "eco": "eco",
}


@dataclass(slots=True, kw_only=True)
class Boiler:
    """A vessel of water with a heater."""

    heater_w: float
    capacity_j_per_k: float
    loss_w_per_k: float
    limit_c: float
    setpoint_c: float
    temp_c: float = AMBIENT_C
    duty: float = 0.0

    def step(self, dt_s: float, *, target_c: float | None, error_c: float = 0.0, draw_w: float = 0.0) -> None:
        """Heat towards `target_c` (None: off) while `draw_w` is taken out; the sensor errs by `error_c`."""
        wanted = 0.0
        if target_c is not None:
            wanted = (min(target_c, self.limit_c) - (self.temp_c + error_c)) / _BAND_C
        self.duty = min(1.0, max(0.0, wanted))
        loss_w = self.loss_w_per_k * (self.temp_c - AMBIENT_C) + draw_w
        self.temp_c += (self.duty * self.heater_w - loss_w) * dt_s / self.capacity_j_per_k

    @property
    def power_w(self) -> float:
        """What the heater takes."""
        return self.duty * self.heater_w


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the machine says of a command; `settings_changed` if its `device_info` is another now."""

    level: Literal["info", "warn"]
    text: str
    settings_changed: bool = False


class Machine:
    """A machine that can be switched on and off, set, stepped through time and asked for its state.

    `now_ms` gives the time of day for the time stamps that a machine reports (Unix, ms). With the same `seed`
    and the same calls, everything but those is the same.
    """

    def __init__(self, *, device_id: str, now_ms: Callable[[], int], seed: int = 1) -> None:
        self.device_id = device_id
        self.brew = Boiler(
            heater_w=1500.0, capacity_j_per_k=4300.0, loss_w_per_k=1.0, limit_c=105.0, setpoint_c=93.0
        )
        self.steam = Boiler(
            heater_w=1000.0, capacity_j_per_k=3400.0, loss_w_per_k=0.6, limit_c=160.0, setpoint_c=140.0
        )
        self.state: Literal["idle", "heating", "ready", "brewing", "eco"] = "idle"
        self.strategy = 2
        self.eco_brew_c = 80.0
        self.ready_s = 0.0  # for how long it has been ready without a shot
        self.uptime_s = 0.0
        self.brew_count = 0
        self._now_ms = now_ms
        # Noise of sensors, not secrets.
        self._random = random.Random(seed)  # noqa: S311
        self._group_c = AMBIENT_C
        self._shot_s: float | None = None
        self._pressure_bar = 0.0
        self._weight_g = 0.0
        self._flow_g_per_s = 0.0
        self._voltage_v = 230.0
        self._energy_kwh = 0.0
        self._on_since_ms: int | None = None
        self._last_shot_ms: int | None = None

    @property
    def mode(self) -> str:
        """`on`, `eco` or `standby`."""
        return {"idle": "standby", "eco": "eco"}.get(self.state, "on")

    @property
    def power_w(self) -> float:
        """What the whole machine takes."""
        pump_w = _PUMP_W if self.state == "brewing" else 0.0
        return self.brew.power_w + self.steam.power_w + pump_w + _ELECTRONICS_W

    # What is done to it

    def obey(self, command: Mapping[str, Any]) -> Outcome:
        """Carry out a command (`cmd` and its fields) as far as the machine takes it."""
        cmd = command.get("cmd")
        if cmd == "set_mode":
            return self._set_mode(command.get("mode"), command.get("strategy"))
        if cmd == "set_temp":
            return self._set_temp(command.get("boiler", "brew"), command.get("temp"))
        return Outcome("warn", f"Unknown command: {_shown(cmd)}")

    def pull_shot(self) -> bool:
        """Start a shot; False if the machine is not ready for one."""
        if self.state != "ready":
            return False
        self.state = "brewing"
        self._shot_s = 0.0
        self._weight_g = 0.0
        return True

    def step(self, dt_s: float) -> None:
        """Let `dt_s` seconds pass."""
        while dt_s > 0:
            self._step(min(dt_s, _STEP_S))
            dt_s -= _STEP_S

    def _set_mode(self, mode: Any, strategy: Any) -> Outcome:
        wanted = _MODES.get(mode) if isinstance(mode, str) else None
        if wanted is None:
            return Outcome("warn", f"set_mode: unknown mode {_shown(mode)}, known are {', '.join(_MODES)}")
        if wanted == "standby":
            self.state = "idle"
            self._shot_s = None
            self._on_since_ms = None
            return Outcome("info", "Mode set to standby")
        if self.state not in ("idle", "ready", "eco"):
            return Outcome("warn", f"set_mode: not while {self.state}")
        if wanted == "eco":
            self.state = "eco"
            return Outcome("info", f"Mode set to eco, holding {self.eco_brew_c:.0f} C")
        if type(strategy) is int and 0 <= strategy <= 3:
            self.strategy = strategy
        if self.state == "idle":
            self._on_since_ms = self._now_ms()
        self.state = "heating"
        self._settle()
        return Outcome("info", f"Mode set to on, strategy {self.strategy}")

    def _set_temp(self, boiler: Any, temp: Any) -> Outcome:
        if boiler not in ("brew", "steam"):
            return Outcome("warn", f"set_temp: unknown boiler {_shown(boiler)}, known are brew, steam")
        if isinstance(temp, bool) or not isinstance(temp, int | float) or not 50 <= temp <= 150:
            return Outcome("warn", f"set_temp: temp must be a number from 50 to 150, not {_shown(temp)}")
        (self.brew if boiler == "brew" else self.steam).setpoint_c = float(temp)
        return Outcome(
            "info", f"{boiler.capitalize()} temperature set to {temp:.1f} C", settings_changed=True
        )

    # What happens in it

    def _step(self, dt_s: float) -> None:
        self.uptime_s += dt_s
        self.ready_s = self.ready_s + dt_s if self.state == "ready" else 0.0
        draw_w = self._step_shot(dt_s)
        noise = self._random.gauss
        self.brew.step(dt_s, target_c=self._brew_target_c(), error_c=noise(0, 0.02), draw_w=draw_w)
        steam_target_c = self.steam.setpoint_c if self._heats_steam() else None
        self.steam.step(dt_s, target_c=steam_target_c, error_c=noise(0, 0.02))
        group_target_c = AMBIENT_C + 0.94 * (self.brew.temp_c - AMBIENT_C)
        self._group_c += (group_target_c - self._group_c) * dt_s / _GROUP_LAG_S
        self._voltage_v += (230.0 - self._voltage_v) * dt_s / 60.0 + noise(0, 0.05)
        self._energy_kwh += self.power_w * dt_s / 3.6e6
        self._settle()

    def _brew_target_c(self) -> float | None:
        """What the brew boiler is heated to; None while it is off."""
        if self.state == "idle":
            return None
        return self.eco_brew_c if self.state == "eco" else self.brew.setpoint_c

    def _brew_reached(self, band_c: float) -> bool:
        return self.brew.temp_c >= min(self.brew.setpoint_c, self.brew.limit_c) - band_c

    def _heats_steam(self) -> bool:
        """Whether the strategy lets the steam boiler heat: 0 never, 1 after brew, 2 beside it, 3 half-way."""
        if self.state in ("idle", "eco") or self.strategy == 0:
            return False
        if self.strategy == 2 or self.state != "heating":
            return True
        return self.strategy == 3 and self.brew.temp_c > (AMBIENT_C + self.brew.setpoint_c) / 2

    def _settle(self) -> None:
        """Go to the state that follows from the temperatures."""
        if self.state == "heating" and self._brew_reached(READY_BAND_C):
            self.state = "ready"
        elif self.state == "ready" and not self._brew_reached(LOST_BAND_C):
            self.state = "heating"

    def _step_shot(self, dt_s: float) -> float:
        """Go on with the shot, if there is one; the heat that its water takes out of the boiler, in W."""
        if self._shot_s is None:
            self._pressure_bar = 0.0
            self._flow_g_per_s = 0.0
            return 0.0
        self._shot_s += dt_s
        if self._shot_s >= SHOT_S:
            self.state = "ready"
            self._shot_s = None
            self.brew_count += 1
            self._last_shot_ms = self._now_ms()
            return 0.0
        if self._shot_s < 3.0:  # pre-infusion
            self._pressure_bar, self._flow_g_per_s = 3.0, 0.0
        elif self._shot_s < 8.0:  # ramp
            self._pressure_bar, self._flow_g_per_s = 3.0 + 6.0 * (self._shot_s - 3.0) / 5.0, 0.3
        else:
            self._pressure_bar, self._flow_g_per_s = 9.0 + self._random.gauss(0, 0.05), 1.75
        self._weight_g = min(SHOT_WEIGHT_G, self._weight_g + self._flow_g_per_s * dt_s)
        return 4.18 * max(self._flow_g_per_s, 0.5) * (self.brew.temp_c - AMBIENT_C)

    # What it says

    def status(self) -> dict[str, Any]:
        """Report the machine's state in the groups of a `status` message, without `type` and `seq`."""
        machine = {
            "state": self.state,
            "mode": self.mode,
            "isHeating": self.brew.duty > 0.1 or self.steam.duty > 0.1,
            "isBrewing": self.state == "brewing",
            "heatingStrategy": self.strategy,
            "machineOnTimestamp": self._on_since_ms,
            "lastShotTimestamp": self._last_shot_ms,
        }
        return {
            "machine": {key: value for key, value in machine.items() if value is not None},
            "temps": {
                "brew": _boiler_temps(self.brew),
                "steam": _boiler_temps(self.steam),
                "group": round(self._group_c, 1),
            },
            "pressure": round(self._pressure_bar, 2),
            "power": {
                "current": float(round(self.power_w)),
                "voltage": float(round(self._voltage_v)),
                "todayKwh": round(self._energy_kwh, 3),
                "totalKwh": round(100.0 + self._energy_kwh, 3),
                "maxCurrent": 15.0,
            },
            "cleaning": {
                "brewCount": self.brew_count,
                "reminderDue": self.brew_count >= BREWS_BEFORE_CLEANING,
            },
            "water": {"tankLevel": "ok"},
            "scale": {
                "connected": True,
                "weight": round(self._weight_g, 1),
                "flowRate": round(self._flow_g_per_s, 2),
                "bbw": {
                    "targetWeight": SHOT_WEIGHT_G,
                    "doseWeight": 18.0,
                    "stopOffset": 2.0,
                    "autoStop": True,
                    "autoTare": True,
                },
            },
            "connections": {"pico": True, "wifi": True, "mqtt": False, "scale": True, "cloud": True},
            "pico": {"connected": True, "version": "simulated"},
            "wifi": {
                "connected": True,
                "apMode": False,
                "ssid": "Kitchen",
                "ip": "192.168.1.50",
                "rssi": -58,
            },
            "mqtt": {"enabled": False, "connected": False, "broker": "", "topic": "brewos"},
            "esp32": {"version": "simulated", "freeHeap": 90_000, "uptime": int(self.uptime_s * 1000)},
        }

    def stats(self) -> dict[str, Any]:
        """Report the figures that a machine adds to its status every few minutes."""
        average_ms = SHOT_S * 1000 if self.brew_count else 0.0
        energy_kwh = round(self._energy_kwh, 3)
        return {
            "daily": {"shotCount": self.brew_count, "avgBrewTimeMs": average_ms, "totalKwh": energy_kwh},
            "lifetime": {"totalShots": self.brew_count, "avgBrewTimeMs": average_ms, "totalKwh": energy_kwh},
            "sessionShots": self.brew_count,
            "shotsToday": self.brew_count,
        }

    def device_info(self) -> dict[str, Any]:
        """Report what the machine is and how it is set, as its `device_info` message."""
        return {
            "type": "device_info",
            "deviceId": self.device_id,
            "deviceName": "Simulated machine",
            "machineBrand": "BrewOS",
            "machineModel": "Simulator",
            "machineType": "dual_boiler",
            "firmwareVersion": "simulated",
            "mainsVoltage": 230,
            "maxCurrent": 15,
            "brewSetpoint": self.brew.setpoint_c,
            "steamSetpoint": self.steam.setpoint_c,
            "ecoBrewTemp": self.eco_brew_c,
            "ecoTimeoutMinutes": 30,
            "preinfusionEnabled": True,
            "preinfusionOnMs": 3000,
            "preinfusionPauseMs": 5000,
            "preferences": {
                "firstDayOfWeek": "monday",
                "use24HourTime": True,
                "temperatureUnit": "celsius",
                "electricityPrice": 0.3,
                "currency": "EUR",
                "lastHeatingStrategy": self.strategy,
                "initialized": True,
            },
            "time": {
                "useNTP": True,
                "ntpServer": "pool.ntp.org",
                "utcOffsetMinutes": 0,
                "dstEnabled": False,
                "dstOffsetMinutes": 0,
            },
            "schedule": {"schedules": [], "autoPowerOffEnabled": False, "autoPowerOffMinutes": 60},
        }


def _boiler_temps(boiler: Boiler) -> dict[str, float]:
    return {"current": round(boiler.temp_c, 1), "setpoint": boiler.setpoint_c}


def _shown(value: Any) -> str:
    """Show a value that somebody sent, whatever it is, in a few characters."""
    plain = value is None or isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 1e9)
    return repr(value)[:40] if plain else f"a value of type {type(value).__name__}"
