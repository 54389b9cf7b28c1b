"""Commands for heating, brewing and the scale."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from brewos_relay.simulator.model import command_fields as fields
from brewos_relay.simulator.model.boilers import STRATEGIES
from brewos_relay.simulator.model.command_fields import CommandRejected, CommandResult

if TYPE_CHECKING:
    from brewos_relay.simulator.model.machine import Machine

_Command = Mapping[str, Any]

_MODES: Final = {
    **dict.fromkeys(("on", "ready", "brew", "steam"), "on"),
    **dict.fromkeys(("off", "standby", "idle"), "standby"),
    "eco": "eco",
}
_SCALE: Final = {"address": "AA:BB:CC:00:11:22", "name": "Simulated scale", "rssi": -48, "type": "acaia"}


def set_mode(machine: "Machine", command: _Command) -> CommandResult:
    """Switch on (with an optional strategy), off, or to eco."""
    wanted = _MODES[fields.choice(command, "mode", _MODES)]
    if wanted == "standby":
        machine.switch_off()
        return CommandResult("info", "Mode set to standby")
    _not_while_busy(machine)
    if wanted == "eco":
        machine.enter_eco()
        return CommandResult("info", f"Mode set to eco, holding {machine.configuration.eco_brew_c:.0f} C")
    strategy = command.get("strategy") if command.get("mode") == "on" else None
    known = type(strategy) is int and strategy in STRATEGIES
    machine.switch_on(strategy if known else None)
    return CommandResult("info", f"Mode set to on, strategy {machine.strategy}", settings_changed=known)


def set_temp(machine: "Machine", command: _Command) -> CommandResult:
    """Set the setpoint of a boiler."""
    boiler = fields.choice(command, "boiler", ("brew", "steam"), "brew")
    temp_c = fields.number(command, "temp", low=50, high=150)
    (machine.brew if boiler == "brew" else machine.steam).setpoint_c = temp_c
    text = f"{boiler.capitalize()} temperature set to {temp_c:.1f} C"
    return CommandResult("info", text, settings_changed=True)


def set_eco(machine: "Machine", command: _Command) -> CommandResult:
    """Set the temperature of eco mode, and when it starts."""
    configuration = machine.configuration
    enabled = fields.flag(command, "enabled", default=True)
    brew_c = fields.number(command, "brewTemp", low=50, high=120, default=80)
    timeout_min = fields.whole(command, "timeout", low=1, high=1440, default=30)
    configuration.eco_enabled, configuration.eco_brew_c = enabled, brew_c
    configuration.eco_timeout_min = timeout_min
    return CommandResult("info", f"Eco mode {_on(enabled)}: {brew_c:.0f} C after {timeout_min} min", True)


def enter_eco(machine: "Machine", _: _Command) -> CommandResult:
    """Start eco mode now."""
    _not_while_busy(machine)
    machine.enter_eco()
    return CommandResult("info", "Entering eco mode")


def exit_eco(machine: "Machine", _: _Command) -> CommandResult:
    """Heat up again after eco mode."""
    if machine.state != "eco":
        raise CommandRejected(f"not while {machine.state}")
    machine.switch_on()
    return CommandResult("info", "Leaving eco mode")


def set_bbw(machine: "Machine", command: _Command) -> CommandResult:
    """Set brewing by weight; omitted fields keep their values."""
    now = machine.configuration
    target_g = fields.number(
        command, "targetWeight", "target_weight", low=10, high=100, default=now.target_weight_g
    )
    dose_g = fields.number(command, "doseWeight", "dose_weight", low=5, high=30, default=now.dose_weight_g)
    offset_g = fields.number(command, "stopOffset", "stop_offset", low=0, high=10, default=now.stop_offset_g)
    enabled = fields.flag(command, "enabled", "autoStop", "auto_stop", default=now.bbw_enabled)
    now.auto_tare = fields.flag(command, "autoTare", "auto_tare", default=now.auto_tare)
    now.target_weight_g, now.dose_weight_g, now.stop_offset_g = target_g, dose_g, offset_g
    now.bbw_enabled = enabled
    text = f"Brew by weight {_on(enabled)}: {target_g:.1f} g from {dose_g:.1f} g"
    return CommandResult("info", text, answers=(now.bbw_settings(),))


def set_preinfusion(machine: "Machine", command: _Command) -> CommandResult:
    """Set pre-infusion."""
    now = machine.configuration
    enabled = fields.flag(command, "enabled", default=False)
    on_ms = fields.whole(command, "onTimeMs", low=0, high=10_000, default=3000)
    pause_ms = fields.whole(command, "pauseTimeMs", low=0, high=30_000, default=5000)
    now.preinfusion, now.preinfusion_on_ms, now.preinfusion_pause_ms = enabled, on_ms, pause_ms
    text = f"Pre-infusion {_on(enabled)}: {on_ms} ms, then {pause_ms} ms"
    return CommandResult("info", text, settings_changed=True, rich_answers=(now.preinfusion_settings(),))


def set_power(machine: "Machine", command: _Command) -> CommandResult:
    """Set the voltage and the current of the mains."""
    voltage = fields.whole(command, "voltage", low=100, high=240, default=230)
    current_a = fields.number(command, "maxCurrent", low=1, high=30, default=15)
    machine.configuration.mains_voltage, machine.configuration.max_current = voltage, current_a
    return CommandResult("info", f"Power set to {voltage} V, {current_a:g} A at most", settings_changed=True)


def brew_start(machine: "Machine", _: _Command) -> CommandResult:
    """Pull a shot."""
    if not machine.pull_shot():
        raise CommandRejected(
            f"not while {machine.state}" if machine.state != "ready" else "the water tank is empty"
        )
    return CommandResult("info", "Brewing")


def brew_stop(machine: "Machine", _: _Command) -> CommandResult:
    """Stop the shot."""
    if not machine.stop_shot():
        raise CommandRejected("nothing is brewing")
    return CommandResult("info", "Brewing stopped")


def tare(machine: "Machine", _: _Command) -> CommandResult:
    """Set the scale to zero."""
    _need_scale(machine)
    machine.water.weight_g = 0.0
    return CommandResult("info", "Scale tared")


def scale_scan(_machine: "Machine", _: _Command) -> CommandResult:
    """Scan for scales."""
    found = ({"type": "scan_result", **_SCALE}, {"type": "scan_complete"})
    return CommandResult("info", "Scanning for scales", rich_answers=found)


def scale_scan_stop(_machine: "Machine", _: _Command) -> CommandResult:
    """Stop scanning."""
    return CommandResult("info", "Scan stopped", rich_answers=({"type": "scan_complete"},))


def scale_connect(machine: "Machine", command: _Command) -> CommandResult:
    """Connect a scale."""
    address = fields.text(command, "address", longest=17)
    machine.water.scale_connected = True
    return CommandResult("info", f"Scale {address} connected", rich_answers=(_scale_status(machine),))


def scale_disconnect(machine: "Machine", _: _Command) -> CommandResult:
    """Disconnect the scale."""
    machine.water.scale_connected = False
    machine.water.weight_g = 0.0
    return CommandResult("info", "Scale disconnected", rich_answers=(_scale_status(machine),))


def set_scale_connected(machine: "Machine", command: _Command) -> CommandResult:
    """Connect or disconnect the scale."""
    connected = fields.flag(command, "connected", default=True)
    return (scale_connect if connected else scale_disconnect)(machine, {"address": _SCALE["address"]})


def _scale_status(machine: "Machine") -> dict[str, Any]:
    return {
        "type": "scale_status",
        "connected": machine.water.scale_connected,
        "name": _SCALE["name"],
        "scaleType": _SCALE["type"],
        "weight": round(machine.water.weight_g, 1),
        "flowRate": round(machine.water.flow_g_per_s, 2),
        "stable": machine.shot is None,
        "battery": 80,
    }


def _not_while_busy(machine: "Machine") -> None:
    if machine.state not in ("idle", "ready", "eco"):
        raise CommandRejected(f"not while {machine.state}")


def _need_scale(machine: "Machine") -> None:
    if not machine.water.scale_connected:
        raise CommandRejected("no scale is connected")


def _on(enabled: bool) -> str:
    return "on" if enabled else "off"
