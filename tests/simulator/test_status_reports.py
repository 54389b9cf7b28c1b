"""Tests of simulator.status_reports: which message is sent when, and its encoding."""

from typing import Any

import pytest

from brewos_relay.simulator.firmware.messagepack import pack
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.status_reports import StatusReports, changed_groups


def make_status(**groups: Any) -> dict[str, Any]:
    machine = Machine(device_id="BRW-00000001", now_ms=lambda: 1_700_000_000_000)
    return machine.status() | groups


def take(reports: StatusReports, status: dict[str, Any], now_s: float) -> dict[str, Any] | None:
    return reports.next(status, {"sessionShots": 3}, now_s=now_s, uptime_s=now_s)


def test_full_status_first_then_changes() -> None:
    reports = StatusReports()
    reports.begin()
    first = take(reports, make_status(), 0)
    assert first is not None
    assert list(first)[:2] == ["type", "seq"]
    assert (first["type"], first["seq"]) == ("status", 1)
    assert set(make_status()) <= set(first)
    assert "stats" not in first
    assert take(reports, make_status(), 1) is None
    assert take(reports, make_status(pressure=9.0), 2) == {"type": "status_delta", "seq": 2, "pressure": 9.0}
    reports.begin()
    again = take(reports, make_status(pressure=9.0), 3)
    assert again is not None
    assert (again["type"], again["seq"]) == ("status", 3)


def test_small_changes_accumulate() -> None:
    reports = StatusReports()
    take(reports, make_status(pressure=0.0), 0)
    assert take(reports, make_status(pressure=0.06), 1) is None
    assert take(reports, make_status(pressure=0.12), 2) is not None
    assert take(reports, make_status(pressure=0.06), 3) is None


def test_change_of_state_sends_a_full_status() -> None:
    reports = StatusReports()
    status = make_status()
    take(reports, status, 0)
    report = take(reports, status | {"machine": status["machine"] | {"state": "heating"}}, 1)
    assert report is not None
    assert (report["type"], "temps" in report, "stats" in report) == ("status", True, False)


def test_unchanged_state_sends_keepalives() -> None:
    reports = StatusReports()
    take(reports, make_status(), 0)
    assert take(reports, make_status(), 29.9) is None
    assert take(reports, make_status(), 30) == {"type": "keepalive", "seq": 2, "uptime": 30_000}
    assert take(reports, make_status(), 59.9) is None


def test_full_status_with_stats_every_five_minutes() -> None:
    reports = StatusReports()
    take(reports, make_status(), 0)
    report = take(reports, make_status(), 300)
    assert report is not None
    assert (report["type"], report["stats"]) == ("status", {"sessionShots": 3})


def temps(brew_c: float, setpoint_c: float = 93.0, group_c: float = 20.0) -> dict[str, Any]:
    return {
        "brew": {"current": brew_c, "setpoint": setpoint_c},
        "steam": {"current": 20.0, "setpoint": 140.0},
        "group": group_c,
    }


@pytest.mark.parametrize(
    ("group", "before", "after", "told"),
    [
        ("temps", temps(20.0), temps(20.4), None),
        ("temps", temps(20.0), temps(20.5), temps(20.5)),
        ("temps", temps(20.0), temps(20.0, 94.0), temps(20.0, 94.0)),
        ("temps", temps(20.0), temps(20.0, group_c=20.5), temps(20.0, group_c=20.5)),
        ("power", {"current": 5.0, "voltage": 230.0}, {"current": 14.9, "voltage": 226.0}, None),
        (
            "power",
            {"current": 5.0, "voltage": 230.0, "totalKwh": 1.0},
            {"current": 15.0, "voltage": 230.0, "totalKwh": 2.0},
            {"current": 15.0, "voltage": 230.0},
        ),
        (
            "scale",
            {"connected": True, "weight": 0.0, "flowRate": 0.0, "bbw": {}},
            {"connected": True, "weight": 0.5, "flowRate": 0.0, "bbw": {}},
            {"connected": True, "weight": 0.5, "flowRate": 0.0},
        ),
        (
            "scale",
            {"connected": True, "weight": 0.0, "flowRate": 0.0},
            {"connected": True, "weight": 0.4, "flowRate": 0.09},
            None,
        ),
        ("water", {"tankLevel": "ok"}, {"tankLevel": "low"}, {"tankLevel": "low"}),
    ],
)
def test_thresholds(group: str, before: dict[str, Any], after: dict[str, Any], told: Any) -> None:
    changed = changed_groups(make_status(**{group: before}), make_status(**{group: after}))
    assert changed == ({} if told is None else {group: told})


def test_delta_of_some_fields_keeps_the_others() -> None:
    reports = StatusReports()
    status = make_status()
    take(reports, status, 0)
    take(reports, status | {"power": status["power"] | {"current": 900.0}}, 1)
    assert take(reports, status | {"power": status["power"] | {"current": 905.0}}, 2) is None


def test_messages_fit_the_limits_of_firmware() -> None:
    status = {"type": "status", "seq": 1, **make_status()}
    assert 500 < len(pack(status)) <= 2042
    delta = {"type": "status_delta", "seq": 1234, "power": {"current": 1500.0, "voltage": 230.0}}
    assert 50 <= len(pack(delta)) <= 64
