"""Commands for MQTT, the power meter, the machine's name, preferences and time."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from brewos_relay.simulator.model import command_fields as fields
from brewos_relay.simulator.model.command_fields import CommandRejected, CommandResult

if TYPE_CHECKING:
    from brewos_relay.simulator.model.machine import Machine

_Command = Mapping[str, Any]

_TYPES: Final = ("dual_boiler", "single_boiler", "heat_exchanger")
_DAYS: Final = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")


def mqtt_test(machine: "Machine", command: _Command) -> CommandResult:
    """Test a broker; a simulated machine does not connect, and succeeds if a broker is set."""
    broker = fields.text(command, "broker", default=machine.configuration.mqtt["broker"])
    answer = {
        "type": "mqtt_test_result",
        "success": bool(broker),
        "message": f"Connected to {broker}" if broker else "No broker is set",
    }
    return CommandResult("info", "MQTT tested", answers=(answer,), busy_s=1.0)


def mqtt_config(machine: "Machine", command: _Command) -> CommandResult:
    """Store the settings of MQTT; omitted fields keep their values. `port` is checked, but not stored.

    No connection is made: the machine reports one if MQTT is enabled and has a broker.
    """
    now = machine.configuration.mqtt
    fields.whole(command, "port", low=1, high=65_535, default=1883)
    enabled = fields.flag(command, "enabled", default=now["enabled"])
    broker = fields.text(command, "broker", default=now["broker"])
    topic = fields.text(command, "topic", default=now["topic"])
    mqtt = {"enabled": enabled, "connected": enabled and bool(broker), "broker": broker, "topic": topic}
    machine.configuration.mqtt = mqtt
    answer = {"type": "mqtt_status", "mqtt": dict(mqtt)}
    return CommandResult(
        "info", f"MQTT {'on' if enabled else 'off'}", settings_changed=True, answers=(answer,)
    )


def configure_power_meter(machine: "Machine", command: _Command) -> CommandResult:
    """Set the MQTT topic of the power meter. `source` "none", or no `source`, removes the meter."""
    source = fields.choice(command, "source", ("none", "mqtt"), "none")
    if source == "none":
        machine.configuration.meter_topic = None
        return CommandResult("info", "Power meter removed")
    topic = fields.text(command, "topic")
    machine.configuration.meter_format = fields.text(command, "format", longest=16, default="auto")
    machine.configuration.meter_topic = topic
    return CommandResult("info", f"Power meter at {topic}"[:255])


def try_power_meter(machine: "Machine", _: _Command) -> CommandResult:
    """Report whether a meter is configured (`test_power_meter`)."""
    found = machine.configuration.meter_topic is not None
    answer = {
        "type": "power_meter_test_result",
        "success": found,
        "message": "Meter found" if found else "No meter is configured",
        "steps": [{"name": "configured", "ok": found, "detail": machine.configuration.meter_topic or ""}],
    }
    return CommandResult("info", "Power meter tested", answers=(answer,))


def discover_power_meter(_machine: "Machine", _: _Command) -> CommandResult:
    """Do nothing, as firmware does."""
    return CommandResult("info", "Power meters are not looked for")


def set_machine_info(machine: "Machine", command: _Command) -> CommandResult:
    """Set the name and the type of the machine; omitted fields keep their values."""
    now = machine.configuration
    kind = fields.choice(command, "machineType", (*_TYPES, now.machine_type), now.machine_type)
    name = fields.text(command, "name", longest=32, default=now.name)
    brand = fields.text(command, "brand", "machineBrand", longest=32, default=now.brand)
    model = fields.text(command, "model", "machineModel", longest=32, default=now.model)
    now.machine_type, now.name, now.brand, now.model = kind, name, brand, model
    return CommandResult("info", f"Machine is {name}", settings_changed=True)


def set_preferences(machine: "Machine", command: _Command) -> CommandResult:
    """Set the preferences; omitted fields keep their values."""
    now = machine.configuration.preferences
    first = command.get("firstDayOfWeek", now["firstDayOfWeek"])
    if first not in _DAYS and not (type(first) is int and 0 <= first <= 6):
        raise CommandRejected(f"firstDayOfWeek must be a day, not {fields.shown(first)}")
    machine.configuration.preferences = {
        "firstDayOfWeek": first,
        "use24HourTime": fields.flag(command, "use24HourTime", default=now["use24HourTime"]),
        "temperatureUnit": fields.choice(
            command, "temperatureUnit", ("celsius", "fahrenheit"), now["temperatureUnit"]
        ),
        "electricityPrice": fields.number(
            command, "electricityPrice", low=0, high=1000, default=now["electricityPrice"]
        ),
        "currency": fields.text(command, "currency", longest=3, default=now["currency"]),
        "lastHeatingStrategy": fields.whole(
            command, "lastHeatingStrategy", low=0, high=3, default=now["lastHeatingStrategy"]
        ),
        "initialized": True,
    }
    return CommandResult("info", "Preferences saved", settings_changed=True)


def set_time_config(machine: "Machine", command: _Command) -> CommandResult:
    """Set the time zone; omitted fields keep their values."""
    now = machine.configuration.time
    machine.configuration.time = {
        "useNTP": fields.flag(command, "useNTP", default=now["useNTP"]),
        "ntpServer": fields.text(command, "ntpServer", longest=63, default=now["ntpServer"]),
        "utcOffsetMinutes": fields.whole(
            command, "utcOffsetMinutes", low=-840, high=840, default=now["utcOffsetMinutes"]
        ),
        "dstEnabled": fields.flag(command, "dstEnabled", default=now["dstEnabled"]),
        "dstOffsetMinutes": fields.whole(
            command, "dstOffsetMinutes", low=0, high=120, default=now["dstOffsetMinutes"]
        ),
    }
    return CommandResult("info", "Time settings saved", settings_changed=True)


def get_time_status(machine: "Machine", _: _Command) -> CommandResult:
    """Report the time."""
    return CommandResult("info", "Time status", answers=(_time_status(machine),))


def sync_time(machine: "Machine", _: _Command) -> CommandResult:
    """Report the time as synchronized. The simulated clock stays as it is."""
    return CommandResult("info", "Time synchronised", answers=(_time_status(machine),))


def _time_status(machine: "Machine") -> dict[str, Any]:
    offset_s = machine.configuration.utc_offset_s
    local = datetime.fromtimestamp(machine.clock_ms // 1000 + offset_s, UTC)
    sign = "-" if offset_s < 0 else "+"
    return {
        "type": "time_status",
        "synced": True,
        "currentTime": f"{local:%Y-%m-%d %H:%M:%S}",
        "timezone": f"UTC{sign}{abs(offset_s) // 3600:02}:{abs(offset_s) // 60 % 60:02}",
        "utcOffset": offset_s,
    }
