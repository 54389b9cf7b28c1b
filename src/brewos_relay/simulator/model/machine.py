"""A model of a dual-boiler espresso machine. It has no I/O and no clock: `step` advances its time.

The figures are those of a domestic machine: 0.25 to 0.4 °C/s when heating, about 1 °C/min when cooling down,
a shot of half a minute at 9 bar.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from brewos_relay.simulator.model.boilers import HEATED_STEP_S, PARALLEL, Boiler, share_power
from brewos_relay.simulator.model.command_fields import CommandResult
from brewos_relay.simulator.model.command_table import execute
from brewos_relay.simulator.model.configuration import Configuration
from brewos_relay.simulator.model.schedules import Schedule
from brewos_relay.simulator.model.status import device_info, stats, status
from brewos_relay.simulator.model.water import PUMP_W, Recipe, Shot, Water

AMBIENT_C: Final = 22.0
READY_BAND_C: Final = 1.0  # the brew boiler is ready within this distance of its setpoint
LOST_BAND_C: Final = 3.0  # the machine heats again when it is this far below

_COLD_STEP_S: Final = 15.0  # the longest time step while the heaters are off
_WARM_C: Final = 0.5
_GROUP_PART: Final = 0.94
_GROUP_LAG_S: Final = 90.0
_ELECTRONICS_W: Final = 5.0
_STEAMING_W: Final = 950.0
_DRAUGHT_W: Final = 6.0  # the change of the heat loss in a step
_DRAUGHT_S: Final = 20.0
_MOST_OUTGOING: Final = 40

State = Literal["idle", "heating", "ready", "brewing", "eco"]


class Machine:
    """A machine that can be switched on and off, configured, advanced in time and asked for its state.

    `now_ms` returns the time for the machine's time stamps (Unix, ms). Its own clock, for schedules and eco
    mode, starts there and advances with its steps. With the same `rng` and the same calls, everything but
    those time stamps is the same. A `rich` machine has commands and messages that apps know and today's
    firmware lacks: `brew_start`, figures of the shot, events.
    """

    def __init__(
        self,
        *,
        device_id: str,
        now_ms: Callable[[], int],
        rng: random.Random | None = None,
        rich: bool = False,
    ) -> None:
        # Sensor noise, not secrets.
        self.rng = random.Random(1) if rng is None else rng  # noqa: S311
        self.device_id = device_id
        self.rich = rich
        self.now_ms = now_ms
        self.configuration = Configuration()
        self.brew = Boiler(
            heater_w=1500.0, capacity_j_per_k=4300.0, loss_w_per_k=1.0, limit_c=105.0,
            setpoint_c=93.0, ambient_c=AMBIENT_C,
        )  # fmt: skip
        self.steam = Boiler(
            heater_w=1000.0, capacity_j_per_k=3400.0, loss_w_per_k=0.6, limit_c=160.0,
            setpoint_c=140.0, ambient_c=AMBIENT_C,
        )  # fmt: skip
        self.water = Water(self.rng)
        self.state: State = "idle"
        self.strategy = PARALLEL
        self.rssi_dbm = -58.0
        # Clocks
        self.uptime_s = 0.0
        self.ready_s = 0.0  # time in state `ready` since the last shot
        self.unused_s = 0.0  # time switched on since the last shot
        self.on_since_ms: int | None = None
        self.last_shot_ms: int | None = None
        self.shot_began_ms: int | None = None
        # Counters
        self.brew_count = 0
        self.shots_today = 0
        self.lifetime_shots = 0
        self.brewed_s = 0.0
        self.energy_kwh = 0.0
        self.energy_today_kwh = 0.0
        #: Messages to send: `log` and, from a rich machine, `event`, oldest first.
        self.outgoing: list[dict[str, Any]] = []
        # Measurements
        self.voltage_v = 230.0
        self.group_c = AMBIENT_C
        self._steaming_s = 0.0
        self._draught_w = 0.0
        self._clock_s = now_ms() / 1000
        self._minute = self._local_minute()

    @property
    def mode(self) -> str:
        """`on`, `eco` or `standby`."""
        return {"idle": "standby", "eco": "eco"}.get(self.state, "on")

    @property
    def shot(self) -> Shot | None:
        """The shot in progress."""
        return self.water.shot

    @property
    def power_w(self) -> float:
        """The power of the whole machine."""
        pump_w = PUMP_W if self.shot is not None else 0.0
        return self.brew.power_w + self.steam.power_w + pump_w + _ELECTRONICS_W

    @property
    def clock_ms(self) -> int:
        """The time of the machine's own clock, Unix ms."""
        return int(self._clock_s * 1000)

    @property
    def off(self) -> bool:
        """Whether nothing heats or moves, so that longer steps suffice."""
        return self.state == "idle" and self.water.at_rest

    @property
    def cold(self) -> bool:
        """Whether it is off and has cooled down, so that nothing changes any more."""
        return self.off and self.brew.temp_c - AMBIENT_C < _WARM_C and self.steam.temp_c - AMBIENT_C < _WARM_C

    # Control

    def execute(self, command: Mapping[str, Any]) -> CommandResult:
        """Carry out a command (`cmd` and its fields) if the machine accepts it."""
        return execute(self, command)

    def switch_on(self, strategy: int | None = None) -> None:
        """Heat up, or leave eco mode."""
        if strategy is not None:
            self.strategy = strategy
            self.configuration.preferences["lastHeatingStrategy"] = strategy
        if self.state == "idle":
            self.on_since_ms = self.now_ms()
            self.unused_s = 0.0
        self.ready_s = 0.0
        self.state = "heating"
        self._settle()

    def switch_off(self) -> None:
        """Go to standby in any state; this ends a shot."""
        if self.shot is not None:
            self.stop_shot()
        self.state = "idle"
        self.on_since_ms = None
        self._steaming_s = 0.0

    def enter_eco(self) -> None:
        """Hold the lower temperature of eco mode."""
        self.state = "eco"
        self.ready_s = 0.0

    def pull_shot(self) -> bool:
        """Start a shot; return False if the machine is not ready for one."""
        if self.state != "ready" or self.water.level == "empty":
            return False
        configuration = self.configuration
        by_weight = configuration.bbw_enabled and self.water.scale_connected
        on_ms, pause_ms = configuration.preinfusion_on_ms, configuration.preinfusion_pause_ms
        self.water.begin(
            Recipe(
                preinfusion_s=on_ms / 1000 if configuration.preinfusion else 0.0,
                pause_s=pause_ms / 1000 if configuration.preinfusion else 0.0,
                stop_at_g=configuration.target_weight_g - configuration.stop_offset_g if by_weight else 36.0,
            ),
            tares=configuration.auto_tare,
        )
        self.state = "brewing"
        self.shot_began_ms = self.now_ms()
        self.say("info", "Brewing started", source="pico")
        self.tell({"type": "event", "event": "shot_start", "timestamp": self.shot_began_ms})
        return True

    def stop_shot(self) -> bool:
        """Stop the shot; return False if there is none."""
        shot = self.water.end()
        if shot is None:
            return False
        self.state = "ready"
        self.ready_s = self.unused_s = 0.0
        self.brew_count += 1
        self.shots_today += 1
        self.lifetime_shots += 1
        self.brewed_s += shot.elapsed_s
        self.last_shot_ms = self.now_ms()
        self.say("info", f"Brewing ended after {shot.elapsed_s:.1f} s, {shot.weight_g:.1f} g", source="pico")
        self.tell(
            {
                "type": "event",
                "event": "shot_end",
                "duration": round(shot.elapsed_s * 1000),
                "weight": round(shot.weight_g, 1),
                "timestamp": self.last_shot_ms,
            }
        )
        return True

    def steam_milk(self, for_s: float) -> None:
        """Open the steam valve for a while."""
        if self.state in ("ready", "brewing"):
            self._steaming_s = for_s

    def say(self, level: str, text: str, *, source: str = "esp32") -> None:
        """Append a line to the machine's log."""
        self.outgoing.append(
            {
                "type": "log",
                "level": level,
                "message": text[:255],
                "source": source,
                "timestamp": int(self.uptime_s * 1000),
            }
        )
        del self.outgoing[:-_MOST_OUTGOING]

    def tell(self, message: dict[str, Any]) -> None:
        """Append a message that only a rich machine sends."""
        if self.rich:
            self.outgoing.append(message)
            del self.outgoing[:-_MOST_OUTGOING]

    # Simulation

    def step(self, dt_s: float) -> None:
        """Advance by `dt_s` seconds."""
        while dt_s > 1e-9:
            step_s = min(dt_s, _COLD_STEP_S if self.off else HEATED_STEP_S)
            self._step(step_s)
            dt_s -= step_s

    def _step(self, dt_s: float) -> None:
        self.uptime_s += dt_s
        self._clock_s += dt_s
        on = self.state != "idle"
        self.ready_s = self.ready_s + dt_s if self.state == "ready" else 0.0
        self.unused_s = self.unused_s + dt_s if on else 0.0
        noise = self.rng.gauss
        brew_draw_w = self.water.step(dt_s, warms_by_c=self.brew.temp_c - AMBIENT_C)
        if self.shot is not None and self.shot.done:
            self.stop_shot()
        steam_draw_w = 0.0
        if self._steaming_s > 0.0:
            self._steaming_s -= dt_s
            steam_draw_w = _STEAMING_W if self.steam.temp_c > 101.0 else 0.0
        brew_w = steam_w = 0.0
        if on:
            draught_w = self._draught_w * (1.0 - dt_s / _DRAUGHT_S) + noise(0.0, _DRAUGHT_W)
            self._draught_w = min(80.0, max(-35.0, draught_w))
            brew_draw_w += self._draught_w
            brew_target_c, steam_target_c = self._targets()
            brew_w = self.brew.want(brew_target_c, dt_s, error_c=noise(0.0, 0.03))
            steam_w = self.steam.want(steam_target_c, dt_s, error_c=noise(0.0, 0.04))
            pump_w = PUMP_W if self.shot is not None else 0.0
            brew_w, steam_w = share_power(
                brew_w,
                steam_w,
                strategy=self.strategy,
                budget_w=self.configuration.limit_w - pump_w - _ELECTRONICS_W,
                heating=self.state == "heating",
                clock_s=self.uptime_s,
            )
        self.brew.step(dt_s, power_w=brew_w, draw_w=brew_draw_w)
        self.steam.step(dt_s, power_w=steam_w, draw_w=steam_draw_w)
        group_target_c = AMBIENT_C + _GROUP_PART * (self.brew.temp_c - AMBIENT_C)
        self.group_c += (group_target_c - self.group_c) * min(1.0, dt_s / _GROUP_LAG_S)
        mains_v = float(self.configuration.mains_voltage)
        wander_v = (mains_v - self.voltage_v) * min(1.0, dt_s / 60.0) + noise(0.0, 0.05)
        self.voltage_v = min(mains_v + 3.0, max(mains_v - 3.0, self.voltage_v + wander_v))
        used_kwh = self.power_w * dt_s / 3.6e6
        self.energy_kwh += used_kwh
        self.energy_today_kwh += used_kwh
        self._settle()
        if (minute := self._local_minute()) != self._minute:
            self._pass_minutes(minute)

    def _targets(self) -> tuple[float, float | None]:
        """Return the boilers' target temperatures (None: off) while the machine is on or in eco mode."""
        if self.state == "eco":
            return min(self.configuration.eco_brew_c, self.brew.limit_c - 2.0), None
        return self.brew.target_c, self.steam.target_c

    def _settle(self) -> None:
        """Set the state that follows from the temperatures."""
        missing_c = self.brew.target_c - self.brew.sensor_c
        if self.state == "heating" and missing_c <= READY_BAND_C:
            self.state = "ready"
            self.say("info", "Machine is ready", source="pico")
        elif self.state == "ready" and missing_c > LOST_BAND_C:
            self.state = "heating"

    # Clock

    def _local_minute(self) -> int:
        return int(self._clock_s + self.configuration.utc_offset_s) // 60

    def _pass_minutes(self, minute: int) -> None:
        """Run the tasks of the current minute; after a jump of the clock, skip the other minutes."""
        if minute // 1440 != self._minute // 1440:
            self.shots_today = 0
            self.energy_today_kwh = 0.0
        # A step is at most a minute: more than one has passed only if the clock was set.
        self._minute = minute
        for schedule in self.configuration.schedules:
            if schedule.due_at(minute):
                self._keep(schedule)
        self.rssi_dbm = min(-45.0, max(-80.0, self.rssi_dbm + self.rng.gauss(0.0, 0.8)))
        configuration = self.configuration
        if configuration.auto_off and self.unused_s >= configuration.auto_off_min * 60 and self.shot is None:
            self.switch_off()
            self.say("info", f"Switched off after {configuration.auto_off_min} min without a shot")
        elif (
            configuration.eco_enabled
            and self.state == "ready"
            and self.ready_s >= configuration.eco_timeout_min * 60
        ):
            self.enter_eco()
            self.say("info", f"Eco mode after {configuration.eco_timeout_min} min without a shot")

    def _keep(self, schedule: Schedule) -> None:
        self.say("info", f"Schedule {schedule.name or schedule.id}: {schedule.action}")
        if schedule.action == "off":
            self.switch_off()
        elif self.state in ("idle", "eco"):
            self.switch_on(schedule.strategy)

    # Messages

    def status(self) -> dict[str, Any]:
        """Return the groups of a `status` message, without `type` and `seq`."""
        return status(self)

    def stats(self) -> dict[str, Any]:
        """Return the statistics that a machine adds to its status every few minutes."""
        return stats(self)

    def device_info(self) -> dict[str, Any]:
        """Return the `device_info` message."""
        return device_info(self)
