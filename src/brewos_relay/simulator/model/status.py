"""The status messages of a machine, with their groups in order."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from brewos_relay.simulator.model.boilers import Boiler
    from brewos_relay.simulator.model.machine import Machine

BREWS_BEFORE_CLEANING: Final = 100
_EARLIER_KWH: Final = 100.0  # energy used before the simulation


def status(machine: "Machine") -> dict[str, Any]:
    """Return the groups of a `status` message, without `type` and `seq`."""
    configuration = machine.configuration
    mains: dict[str, Any] = {
        "current": float(round(machine.power_w)),
        "voltage": float(round(machine.voltage_v)),
        "todayKwh": round(machine.energy_today_kwh, 3),
        "totalKwh": round(_EARLIER_KWH + machine.energy_kwh, 3),
        "maxCurrent": float(configuration.max_current),
    }
    if configuration.meter_topic is not None:
        mains["meter"] = {"source": "mqtt", "connected": True, "reading": meter_reading(machine)}
    scale: dict[str, Any] = {
        "connected": machine.water.scale_connected,
        "weight": round(machine.water.weight_g, 1),
        "flowRate": round(machine.water.flow_g_per_s, 2),
        "bbw": {
            "targetWeight": configuration.target_weight_g,
            "doseWeight": configuration.dose_weight_g,
            "stopOffset": configuration.stop_offset_g,
            "autoStop": configuration.bbw_enabled,
            "autoTare": configuration.auto_tare,
        },
    }
    content: dict[str, Any] = {
        "machine": _machine(machine),
        "temps": {
            "brew": _temps(machine.brew),
            "steam": _temps(machine.steam),
            "group": round(machine.group_c, 1),
        },
        "pressure": round(machine.water.pressure_bar, 2),
        "power": mains,
        "cleaning": {
            "brewCount": machine.brew_count,
            "reminderDue": machine.brew_count >= BREWS_BEFORE_CLEANING,
        },
        "water": {"tankLevel": machine.water.level},
        "scale": scale,
        "connections": {
            "pico": True,
            "wifi": True,
            "mqtt": configuration.mqtt["connected"],
            "scale": machine.water.scale_connected,
            "cloud": True,
        },
        "pico": {"connected": True, "version": configuration.firmware},
        "wifi": _wifi(machine),
        "mqtt": dict(configuration.mqtt),
        "esp32": {
            "version": configuration.firmware,
            "freeHeap": 90_000 - len(configuration.schedules) * 256,
            "uptime": uptime_ms(machine),
        },
    }
    if machine.rich:
        scale |= {
            "name": "Simulated scale",
            "scaleType": "acaia",
            "stable": machine.shot is None,
            "battery": 80,
        }
        content["shot"] = _shot(machine)
    return content


def stats(machine: "Machine") -> dict[str, Any]:
    """Return the statistics that a machine adds to its status every few minutes."""
    count = machine.lifetime_shots
    average_ms = machine.brewed_s * 1000 / count if count else 0.0
    return {
        "daily": {
            "shotCount": machine.shots_today,
            "avgBrewTimeMs": average_ms,
            "totalKwh": round(machine.energy_today_kwh, 3),
        },
        "lifetime": {
            "totalShots": count,
            "avgBrewTimeMs": average_ms,
            "totalKwh": round(_EARLIER_KWH + machine.energy_kwh, 3),
        },
        "sessionShots": count,
        "shotsToday": machine.shots_today,
    }


def device_info(machine: "Machine") -> dict[str, Any]:
    """Return the `device_info` message."""
    return machine.configuration.device_info(
        machine.device_id, brew_c=machine.brew.setpoint_c, steam_c=machine.steam.setpoint_c
    )


def pico_status(machine: "Machine") -> dict[str, Any]:
    """Return the `pico_status` of old firmware, with values that change rarely."""
    return {
        "type": "pico_status",
        "version": machine.configuration.firmware,
        "state": machine.state,
        "mode": machine.mode,
        "heatingStrategy": machine.strategy,
        "brewSetpoint": machine.brew.setpoint_c,
        "steamSetpoint": machine.steam.setpoint_c,
        "waterLevel": machine.water.level,
    }


def esp_status(machine: "Machine") -> dict[str, Any]:
    """Return the `esp_status` of old firmware, with its connections."""
    return {
        "type": "esp_status",
        "version": machine.configuration.firmware,
        "freeHeap": 90_000,
        "wifi": _wifi(machine),
        "mqtt": dict(machine.configuration.mqtt),
    }


def power_meter_status(machine: "Machine") -> dict[str, Any]:
    """Return the `power_meter_status` message."""
    configured = machine.configuration.meter_topic is not None
    content: dict[str, Any] = {
        "type": "power_meter_status",
        "source": "mqtt" if configured else "none",
        "connected": configured,
        "meterType": "mqtt",
        "configured": configured,
        "discovering": False,
    }
    if configured:
        content |= {
            "mqttTopic": machine.configuration.meter_topic,
            "mqttFormat": machine.configuration.meter_format,
        }
    return content | {
        "reading": meter_reading(machine) if configured else None,
        "lastUpdate": uptime_ms(machine) if configured else None,
        "error": None,
    }


def meter_reading(machine: "Machine") -> dict[str, float]:
    """Return the reading of a power meter in the plug."""
    return {
        "voltage": round(machine.voltage_v, 1),
        "current": round(machine.power_w / machine.voltage_v, 2),
        "power": round(machine.power_w, 1),
        "energy": round(machine.energy_kwh, 3),
        "energyTotal": round(_EARLIER_KWH + machine.energy_kwh, 3),
        "frequency": 50.0,
        "powerFactor": 0.99,
    }


def uptime_ms(machine: "Machine") -> int:
    """Return the uptime as 32 bits."""
    return int(machine.uptime_s * 1000) % 2**31


def _machine(machine: "Machine") -> dict[str, Any]:
    content: dict[str, Any] = {
        "state": machine.state,
        "mode": machine.mode,
        "isHeating": machine.state == "heating",
        "isBrewing": machine.state == "brewing",
        "heatingStrategy": machine.strategy,
    }
    if machine.on_since_ms is not None:
        content["machineOnTimestamp"] = machine.on_since_ms
    if machine.last_shot_ms is not None:
        content["lastShotTimestamp"] = machine.last_shot_ms
    return content


def _temps(boiler: "Boiler") -> dict[str, float]:
    return {"current": round(boiler.sensor_c, 1), "setpoint": boiler.setpoint_c}


def _wifi(machine: "Machine") -> dict[str, Any]:
    static = machine.configuration.static_ip
    return {
        "connected": True,
        "apMode": False,
        "ssid": "Kitchen",
        "ip": static.get("ip", "192.168.1.50"),
        "rssi": round(machine.rssi_dbm),
        "staticIp": bool(static),
        "gateway": static.get("gateway", "192.168.1.1"),
        "subnet": static.get("subnet", "255.255.255.0"),
        "dns1": static.get("dns1", "192.168.1.1"),
        "dns2": static.get("dns2", ""),
    }


def _shot(machine: "Machine") -> dict[str, Any]:
    shot = machine.shot
    if shot is None:
        return {"active": False}
    return {
        "active": True,
        "startTime": machine.shot_began_ms,
        "duration": round(shot.elapsed_s * 1000),
        "weight": round(shot.weight_g, 1),
        "flowRate": round(shot.flow_g_per_s, 2),
    }
