"""Commands for diagnostics, the log, firmware updates and the network."""

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from brewos_relay.simulator.model import command_fields as fields
from brewos_relay.simulator.model.boilers import PARALLEL
from brewos_relay.simulator.model.command_fields import CommandRejected, CommandResult
from brewos_relay.simulator.model.configuration import Configuration

if TYPE_CHECKING:
    from brewos_relay.simulator.model.machine import Machine

_Command = Mapping[str, Any]

_TESTS: Final = ("brew sensor", "steam sensor", "brew heater", "steam heater", "pump", "scale")
_DIAGNOSTICS_S: Final = 2.2
_UPDATE_CHECK_S: Final = 3.0


def run_diagnostics(machine: "Machine", _: _Command) -> CommandResult:
    """Test every part."""
    results = [_test(machine, test_id) for test_id in range(1, len(_TESTS) + 1)]
    failed = sum(result["status"] != 0 for result in results)
    header = {
        "type": "diagnostics_header",
        "testCount": len(results),
        "passCount": len(results) - failed,
        "failCount": failed,
        "warnCount": 0,
        "skipCount": 0,
        "isComplete": True,
        "durationMs": int(_DIAGNOSTICS_S * 1000),
    }
    return CommandResult("info", "Diagnostics complete", answers=(*results, header), busy_s=_DIAGNOSTICS_S)


def run_diagnostic_test(machine: "Machine", command: _Command) -> CommandResult:
    """Test one part."""
    test_id = fields.whole(command, "testId", low=1, high=len(_TESTS))
    return CommandResult("info", f"Test {test_id} complete", answers=(_test(machine, test_id),), busy_s=0.4)


def set_log_config(machine: "Machine", command: _Command) -> CommandResult:
    """Configure the log; omitted fields keep their values."""
    now = machine.configuration
    enabled = fields.flag(command, "enabled", default=now.log_enabled)
    pico = fields.flag(command, "picoEnabled", default=now.log_pico)
    now.log_debug = fields.flag(command, "debugEnabled", default=now.log_debug)
    now.log_enabled, now.log_pico = enabled, pico
    return CommandResult("info", "Log settings saved", answers=(_log_config(machine),))


def get_log_config(machine: "Machine", _: _Command) -> CommandResult:
    """Report the log settings."""
    return CommandResult("info", "Log settings", answers=(_log_config(machine),))


def clear_logs(machine: "Machine", _: _Command) -> CommandResult:
    """Clear the log."""
    return CommandResult("info", "Logs cleared", answers=(_log_config(machine),))


def check_update(machine: "Machine", _: _Command) -> CommandResult:
    """Look for an update, which takes a while. Firmware does not send the result to the relay."""
    result = {
        "type": "update_check_result",
        "updateAvailable": False,
        "currentVersion": machine.configuration.firmware,
    }
    return CommandResult("info", "No update available", rich_answers=(result,), busy_s=_UPDATE_CHECK_S)


def check_version_mismatch(machine: "Machine", _: _Command) -> CommandResult:
    """Compare the versions of the two processors. Firmware does not send the result to the relay."""
    return CommandResult("info", f"Both parts have version {machine.configuration.firmware}")


def ota_start(machine: "Machine", command: _Command) -> CommandResult:
    """Install a version: a rich machine restarts with it, today's firmware loses its cloud connection."""
    version = fields.text(command, "version", longest=16)
    if not version:
        raise CommandRejected("version must not be empty")
    text = f"Updating to {version}"
    if not machine.rich:
        return CommandResult("info", text, effect="leave")
    machine.configuration.firmware = version
    stages = (("download", 0), ("download", 100), ("flash", 50), ("complete", 100))
    progress = tuple(
        {"type": "ota_progress", "stage": stage, "progress": percent, "message": text}
        for stage, percent in stages
    )
    return CommandResult("info", text, rich_answers=progress, effect="restart")


def set_cloud_config(_machine: "Machine", command: _Command) -> CommandResult:
    """Disconnect from the cloud. A simulated machine never moves to another server."""
    enabled = fields.flag(command, "enabled", default=True)
    fields.text(command, "serverUrl", default="")
    if not enabled:
        return CommandResult("info", "Cloud off", effect="leave")
    return CommandResult("info", "Cloud on; a simulated machine stays with its relay", effect="reconnect")


def wifi_config(machine: "Machine", command: _Command) -> CommandResult:
    """Set the network address, which interrupts the connection for a moment."""
    if not fields.flag(command, "staticIp", default=False):
        machine.configuration.static_ip = {}
        return CommandResult("info", "Address from the router", effect="reconnect", busy_s=1.0)
    names = ("ip", "gateway", "subnet", "dns1", "dns2")
    given = {name: fields.text(command, name, longest=15, default="") for name in names}
    for name in ("ip", "gateway", "subnet"):
        try:
            ipaddress.IPv4Address(given[name])
        except ValueError:
            raise CommandRejected(f"{name} must be an address like 192.168.1.50") from None
    machine.configuration.static_ip = given
    return CommandResult("info", f"Address {given['ip']}", effect="reconnect", busy_s=1.0)


def wifi_forget(_machine: "Machine", _: _Command) -> CommandResult:
    """Forget the network, and go offline."""
    return CommandResult("info", "Network forgotten", effect="leave")


def restart(_machine: "Machine", _: _Command) -> CommandResult:
    """Restart."""
    return CommandResult("info", "Restarting", effect="restart")


def factory_reset(machine: "Machine", _: _Command) -> CommandResult:
    """Restore all default settings, switch off, and stay offline until the next power cycle.

    A machine that was reset has lost the settings of its cloud connection.
    """
    machine.switch_off()
    machine.configuration = Configuration()
    machine.brew.setpoint_c, machine.steam.setpoint_c = 93.0, 140.0
    machine.strategy = PARALLEL
    return CommandResult("info", "Factory reset", effect="leave")


def _test(machine: "Machine", test_id: int) -> dict[str, Any]:
    """Return the result of one test: its value and the allowed range."""
    value, low, high = {
        1: (machine.brew.sensor_c, 5.0, 110.0),
        2: (machine.steam.sensor_c, 5.0, 165.0),
        3: (machine.brew.heater_w, 1400.0, 1600.0),
        4: (machine.steam.heater_w, 900.0, 1100.0),
        5: (machine.water.pressure_bar, 0.0, 16.0),
        6: (float(machine.water.scale_connected), 1.0, 1.0),
    }[test_id]
    fine = low <= value <= high
    return {
        "type": "diagnostics_result",
        "testId": test_id,
        "status": 0 if fine else 1,
        "rawValue": round(value, 1),
        "expectedMin": low,
        "expectedMax": high,
        "message": f"{_TESTS[test_id - 1]} {'ok' if fine else 'not as expected'}",
    }


def _log_config(machine: "Machine") -> dict[str, Any]:
    now = machine.configuration
    return {
        "type": "log_config",
        "enabled": now.log_enabled,
        "picoEnabled": now.log_pico,
        "debugEnabled": now.log_debug,
        "size": 0,
    }
