import pytest

from brewos_relay.notifications import BY_FIRMWARE, KINDS, is_wanted

# The defaults of the BrewOS app.
APP = {
    "machineReady": True,
    "waterEmpty": True,
    "descaleDue": True,
    "serviceDue": True,
    "backflushDue": True,
    "machineError": True,
    "picoOffline": True,
    "scheduleTriggered": True,
    "brewComplete": False,
}
FIRMWARE = {
    *("MACHINE_READY", "WATER_EMPTY", "DESCALE_DUE", "SERVICE_DUE"),
    *("BACKFLUSH_DUE", "MACHINE_ERROR", "PICO_OFFLINE"),
}


def test_defaults_are_those_of_the_app() -> None:
    assert {name: is_wanted(name, {}) for name in APP} == APP
    assert KINDS.keys() - APP.keys() == {"machineOffline"}
    assert BY_FIRMWARE.keys() >= FIRMWARE


@pytest.mark.parametrize(
    ("chosen", "wanted"),
    [
        ({}, True),
        ({"picoOffline": False}, False),
        ({"picoOffline": False, "machineOffline": True}, True),
        ({"machineOffline": False}, False),
    ],
)
def test_long_absences_follow_the_apps_switch_for_the_control_board(
    chosen: dict[str, bool], wanted: bool
) -> None:
    assert is_wanted("machineOffline", chosen) is wanted
