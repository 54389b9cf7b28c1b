"""The commands that a machine knows, and its reaction to others."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from brewos_relay.simulator.model import brewing_commands as brewing
from brewos_relay.simulator.model import schedules
from brewos_relay.simulator.model import settings_commands as house
from brewos_relay.simulator.model import system_commands as system
from brewos_relay.simulator.model.command_fields import CommandRejected, CommandResult, shown

if TYPE_CHECKING:
    from brewos_relay.simulator.model.machine import Machine

_Execute = Callable[["Machine", Mapping[str, Any]], CommandResult]

KNOWN: Final[Mapping[str, _Execute]] = {
    "set_mode": brewing.set_mode,
    "set_temp": brewing.set_temp,
    "set_eco": brewing.set_eco,
    "enter_eco": brewing.enter_eco,
    "exit_eco": brewing.exit_eco,
    "set_bbw": brewing.set_bbw,
    "set_preinfusion": brewing.set_preinfusion,
    "set_power": brewing.set_power,
    "set_power_config": brewing.set_power,
    "tare": brewing.tare,
    "scale_tare": brewing.tare,
    "scale_reset": brewing.tare,
    "scale_scan": brewing.scale_scan,
    "scale_scan_stop": brewing.scale_scan_stop,
    "scale_connect": brewing.scale_connect,
    "scale_disconnect": brewing.scale_disconnect,
    "add_schedule": schedules.add_schedule,
    "update_schedule": schedules.update_schedule,
    "delete_schedule": schedules.delete_schedule,
    "toggle_schedule": schedules.toggle_schedule,
    "get_schedules": schedules.get_schedules,
    "set_auto_off": schedules.set_auto_off,
    "mqtt_test": house.mqtt_test,
    "mqtt_config": house.mqtt_config,
    "configure_power_meter": house.configure_power_meter,
    "test_power_meter": house.try_power_meter,
    "start_power_meter_discovery": house.discover_power_meter,
    "set_machine_info": house.set_machine_info,
    "set_device_info": house.set_machine_info,
    "set_preferences": house.set_preferences,
    "set_time_config": house.set_time_config,
    "get_time_status": house.get_time_status,
    "sync_time": house.sync_time,
    "run_diagnostics": system.run_diagnostics,
    "run_diagnostic_test": system.run_diagnostic_test,
    "set_log_config": system.set_log_config,
    "get_log_config": system.get_log_config,
    "clear_logs": system.clear_logs,
    "check_update": system.check_update,
    "check_version_mismatch": system.check_version_mismatch,
    "ota_start": system.ota_start,
    "esp32_ota_start": system.ota_start,
    "pico_ota_start": system.ota_start,
    "set_cloud_config": system.set_cloud_config,
    "wifi_config": system.wifi_config,
    "wifi_forget": system.wifi_forget,
    "restart": system.restart,
    "factory_reset": system.factory_reset,
}

#: Commands of apps that today's firmware does not know.
RICH: Final[Mapping[str, _Execute]] = {
    "brew_start": brewing.brew_start,
    "brew_stop": brewing.brew_stop,
    "set_scale_connected": brewing.set_scale_connected,
}


def execute(machine: "Machine", command: Mapping[str, Any]) -> CommandResult:
    """Carry out a command if the machine accepts it; never raises."""
    cmd = command.get("cmd")
    carry_out = None
    if isinstance(cmd, str):
        carry_out = KNOWN.get(cmd) or (RICH.get(cmd) if machine.rich else None)
    if carry_out is None:
        return CommandResult("warn", f"Unknown command: {shown(cmd)}")
    try:
        return carry_out(machine, command)
    except CommandRejected as problem:
        return CommandResult("warn", f"{cmd}: {problem}"[:255])
