"""The settings of a machine: those in its `device_info`, and others."""

from dataclasses import dataclass, field
from typing import Any

from brewos_relay.simulator.model.boilers import PARALLEL
from brewos_relay.simulator.model.schedules import Schedule


@dataclass(slots=True, kw_only=True)
class Configuration:
    """Everything that a command can set. The names follow those in the machine's messages."""

    # Identity
    name: str = "Simulated machine"
    brand: str = "BrewOS"
    model: str = "Simulator"
    machine_type: str = "dual_boiler"
    firmware: str = "0.8.62"
    # Mains
    mains_voltage: int = 230
    max_current: float = 15.0
    # Eco and pre-infusion
    eco_enabled: bool = True
    eco_brew_c: float = 80.0
    eco_timeout_min: int = 30
    preinfusion: bool = True
    preinfusion_on_ms: int = 3000
    preinfusion_pause_ms: int = 5000
    # Brewing by weight
    bbw_enabled: bool = True
    target_weight_g: float = 36.0
    dose_weight_g: float = 18.0
    stop_offset_g: float = 2.0
    auto_tare: bool = True
    # Schedules
    schedules: list[Schedule] = field(default_factory=list)
    auto_off: bool = False
    auto_off_min: int = 60
    # Preferences
    preferences: dict[str, Any] = field(
        default_factory=lambda: {
            "firstDayOfWeek": "monday",
            "use24HourTime": True,
            "temperatureUnit": "celsius",
            "electricityPrice": 0.3,
            "currency": "EUR",
            "lastHeatingStrategy": PARALLEL,
            "initialized": True,
        }
    )
    time: dict[str, Any] = field(
        default_factory=lambda: {
            "useNTP": True,
            "ntpServer": "pool.ntp.org",
            "utcOffsetMinutes": 0,
            "dstEnabled": False,
            "dstOffsetMinutes": 0,
        }
    )
    # Connections
    mqtt: dict[str, Any] = field(
        default_factory=lambda: {"enabled": False, "connected": False, "broker": "", "topic": "brewos"}
    )
    static_ip: dict[str, Any] = field(default_factory=dict)
    meter_topic: str | None = None
    meter_format: str = "auto"
    # Logging
    log_enabled: bool = False
    log_pico: bool = False
    log_debug: bool = False
    log_level: str = "info"

    @property
    def utc_offset_s(self) -> int:
        """The offset of its local time from UTC."""
        offset_min: int = self.time["utcOffsetMinutes"]
        if self.time["dstEnabled"]:
            offset_min += self.time["dstOffsetMinutes"]
        return offset_min * 60

    @property
    def limit_w(self) -> float:
        """The highest power that it may draw."""
        return self.mains_voltage * self.max_current

    def bbw_settings(self) -> dict[str, Any]:
        """Return its `bbw_settings` message (brew by weight)."""
        return {
            "type": "bbw_settings",
            "enabled": self.bbw_enabled,
            "targetWeight": self.target_weight_g,
            "doseWeight": self.dose_weight_g,
            "stopOffset": self.stop_offset_g,
            "autoTare": self.auto_tare,
        }

    def preinfusion_settings(self) -> dict[str, Any]:
        """Return its `preinfusion_settings` message."""
        return {
            "type": "preinfusion_settings",
            "enabled": self.preinfusion,
            "onTimeMs": self.preinfusion_on_ms,
            "pauseTimeMs": self.preinfusion_pause_ms,
        }

    def device_info(self, device_id: str, *, brew_c: float, steam_c: float) -> dict[str, Any]:
        """Return its `device_info` message."""
        return {
            "type": "device_info",
            "deviceId": device_id,
            "deviceName": self.name,
            "machineBrand": self.brand,
            "machineModel": self.model,
            "machineType": self.machine_type,
            "firmwareVersion": self.firmware,
            "mainsVoltage": self.mains_voltage,
            "maxCurrent": self.max_current,
            "brewSetpoint": brew_c,
            "steamSetpoint": steam_c,
            "ecoBrewTemp": self.eco_brew_c,
            "ecoTimeoutMinutes": self.eco_timeout_min,
            "preinfusionEnabled": self.preinfusion,
            "preinfusionOnMs": self.preinfusion_on_ms,
            "preinfusionPauseMs": self.preinfusion_pause_ms,
            "preferences": dict(self.preferences),
            "time": dict(self.time),
            "schedule": {
                "schedules": [schedule.as_dict() for schedule in self.schedules],
                "autoPowerOffEnabled": self.auto_off,
                "autoPowerOffMinutes": self.auto_off_min,
            },
        }
