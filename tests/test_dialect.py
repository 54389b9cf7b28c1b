"""The classes of commands: every name of the two contracts has one, and no other name has."""

from typing import Any

import pytest

from brewos_relay.dialect import BREWOS, NEUTRAL, CommandClass, Dialect, Policy, Rule, StateKind
from brewos_relay.messages import Message

USE, HOUSEHOLD, MANAGE, RESERVED = CommandClass

DEVICE_COMMANDS = """
    set_mode set_temp set_eco enter_eco exit_eco set_bbw set_preinfusion set_power set_power_config tare
    scale_tare scale_reset scale_scan scale_scan_stop scale_connect scale_disconnect add_schedule
    update_schedule delete_schedule toggle_schedule get_schedules set_auto_off mqtt_test mqtt_config
    configure_power_meter test_power_meter start_power_meter_discovery set_machine_info set_device_info
    set_preferences set_time_config get_time_status sync_time run_diagnostics run_diagnostic_test
    set_log_config get_log_config clear_logs check_update ota_start esp32_ota_start pico_ota_start
    check_version_mismatch set_cloud_config wifi_config wifi_forget restart factory_reset
    record_maintenance brew_start brew_stop set_scale_connected
""".split()  # noqa: SIM905 - it is a table
"""Every `cmd` of the firmware, and those of apps that it ignores."""
DEVICE_TYPES = [
    "connected",
    "error",
    "request_state",
    "request_full_status",
    "ping",
    "getConfig",
    "setLogLevel",
]
APP_TYPES = [
    "request_state",
    "request_full_status",
    "refresh_auth",
    "ping",
    "get_metrics",
    "backflush",
    "descale",
]
LATE_HARM = """
    enter_eco exit_eco brew_start brew_stop ota_start esp32_ota_start pico_ota_start restart
    factory_reset wifi_config wifi_forget set_cloud_config mqtt_config mqtt_test configure_power_meter
    test_power_meter run_diagnostics run_diagnostic_test check_update
""".split()  # noqa: SIM905 - it is a table
MODES = ["on", "ready", "brew", "steam", "off", "standby", "idle", "eco"]


def policy(owner_commands: str = "", never_wait: str = "") -> Policy:
    return Policy(BREWOS, owner_commands=owner_commands.split(","), never_wait=never_wait.split(","))


def class_of(cmd: object, mode: object = None, **patterns: str) -> CommandClass:
    return policy(**patterns).class_of("command", cmd, mode)


def may_wait(cmd: object, mode: object = None, **patterns: str) -> bool:
    return policy(**patterns).may_wait("command", cmd, mode)


# Classes


def test_every_command_of_the_firmware_and_the_app_has_a_class_and_no_other() -> None:
    assert sorted(rule.name for rule in BREWOS.commands) == sorted(DEVICE_COMMANDS)


def test_every_type_of_the_firmware_and_the_app_has_a_class() -> None:
    known = {rule.name for rule in BREWOS.types}
    assert known >= {*DEVICE_TYPES, *APP_TYPES}
    assert known - {*DEVICE_TYPES, *APP_TYPES} == {"key_rotate", "group_clean", "groupClean"}


@pytest.mark.parametrize("rule", [*BREWOS.commands, *BREWOS.types], ids=lambda rule: rule.name)
def test_every_rule_describes_its_effect(rule: Any) -> None:
    assert rule.effect
    assert not (rule.waits and rule.waits_in_modes)
    assert rule.waits_in_modes <= BREWOS.modes


@pytest.mark.parametrize("cmd", ["tare", "set_temp", "enter_eco", "exit_eco", "set_bbw", "scale_connect"])
def test_making_coffee_is_use(cmd: str) -> None:
    assert class_of(cmd) is USE


@pytest.mark.parametrize("mode", [*MODES, "ON", 7, None])
def test_switching_the_machine_is_use_in_every_mode(mode: object) -> None:
    assert class_of("set_mode", mode) is USE


@pytest.mark.parametrize(
    "cmd",
    [
        "add_schedule",
        "update_schedule",
        "delete_schedule",
        "toggle_schedule",
        "set_auto_off",
        "set_preferences",
    ],
)
def test_settings_that_outlast_the_sender_are_household(cmd: str) -> None:
    assert class_of(cmd) is HOUSEHOLD


@pytest.mark.parametrize(
    "cmd",
    [
        *(
            "mqtt_config",
            "mqtt_test",
            "configure_power_meter",
            "test_power_meter",
            "set_power",
            "set_time_config",
        ),
        *("ota_start", "esp32_ota_start", "pico_ota_start", "restart", "factory_reset", "set_cloud_config"),
        *("wifi_config", "wifi_forget", "run_diagnostics", "set_machine_info"),
    ],
)
def test_networks_services_updates_and_resets_are_for_owners(cmd: str) -> None:
    assert class_of(cmd) is MANAGE


@pytest.mark.parametrize(
    "cmd",
    ["", "new_command", "TARE", " tare", "tare ", "tare\t", "set_temp\0", "tare\0restart", None, 7, ["tare"]],
)
def test_an_unknown_or_unreadable_command_is_for_owners_and_never_waits(cmd: object) -> None:
    assert class_of(cmd) is MANAGE
    assert not may_wait(cmd)


@pytest.mark.parametrize(
    "kind", ["anything", "Command", " command", "command\0", "GETCONFIG", "", "tare", "restart"]
)
def test_an_unknown_type_is_for_owners_and_never_waits(kind: str) -> None:
    assert policy().class_of(kind, "tare") is MANAGE
    assert not policy().may_wait(kind, "tare")


@pytest.mark.parametrize("kind", ["key_rotate", " Key_Rotate", "key_rotate\t", "connected", "error"])
def test_messages_of_the_relay_are_reserved(kind: str) -> None:
    assert policy().class_of(kind) is RESERVED
    assert policy(owner_commands="*").class_of(kind) is RESERVED
    assert not policy().may_wait(kind)


def test_command_named_like_a_reserved_type_is_not_reserved() -> None:
    assert class_of("key_rotate") is MANAGE


@pytest.mark.parametrize("kind", ["backflush", "descale", "groupClean"])
def test_a_cleaning_that_an_app_notes_is_use_and_waits(kind: str) -> None:
    assert policy().class_of(kind, "record_maintenance") is USE
    assert policy().may_wait(kind, "record_maintenance")


# Waiting


@pytest.mark.parametrize("cmd", LATE_HARM)
def test_commands_that_could_harm_later_never_wait(cmd: str) -> None:
    assert not may_wait(cmd)


def test_switching_off_may_wait_and_every_other_mode_may_not() -> None:
    assert [mode for mode in MODES if may_wait("set_mode", mode)] == ["off", "standby", "idle"]
    assert not any(may_wait("set_mode", mode) for mode in ("OFF", " off", "off\0", "", None, 0, ["off"]))


def test_entering_eco_waits_no_more_than_setting_the_mode_eco() -> None:
    assert may_wait("enter_eco") == may_wait("set_mode", "eco") == False  # noqa: E712


@pytest.mark.parametrize("cmd", ["tare", "set_temp", "add_schedule", "set_preferences", "get_schedules"])
def test_a_harmless_command_may_wait(cmd: str) -> None:
    assert may_wait(cmd)
    assert may_wait(cmd, "on"), "a machine reads no mode in these"


# Patterns


@pytest.mark.parametrize("patterns", ["tare", "TARE", " ta* ", "*", "tare:on", "restart,tare"])
def test_a_pattern_reserves_a_command_for_owners(patterns: str) -> None:
    assert class_of("tare", owner_commands=patterns) is MANAGE


@pytest.mark.parametrize("patterns", ["", "restart", "tar", "set_*"])
def test_a_pattern_leaves_other_commands_alone(patterns: str) -> None:
    assert class_of("tare", owner_commands=patterns) is USE
    assert may_wait("tare", never_wait=patterns)


def test_a_pattern_may_name_a_mode() -> None:
    def owners(mode: object) -> bool:
        return class_of("set_mode", mode, owner_commands="set_mode:o*") is MANAGE

    assert [mode for mode in MODES if owners(mode)] == ["on", "off"]
    assert owners("ON")
    assert owners(None), "an unreadable mode matches any pattern"
    assert [mode for mode in MODES if may_wait("set_mode", mode, never_wait="set_mode:idle")] == [
        "off",
        "standby",
    ]


def test_a_pattern_may_name_a_type() -> None:
    assert policy(owner_commands="getconfig").class_of("getConfig") is MANAGE
    assert not policy(never_wait="getConfig").may_wait("getConfig")


@pytest.mark.parametrize("patterns", ["", "tare", "set_temp,restart", "*", "*:*", "set_mode:on"])
def test_no_pattern_allows_more_than_the_table(patterns: str) -> None:
    free, tight = policy(), policy(patterns, patterns)
    order = [USE, HOUSEHOLD, MANAGE, RESERVED]
    for kind, cmd, mode in [
        *(("command", rule.name, mode) for rule in BREWOS.commands for mode in (None, *MODES)),
        *((rule.name, None, None) for rule in BREWOS.types),
        ("command", "new_command", None),
        ("anything", None, None),
    ]:
        assert order.index(tight.class_of(kind, cmd, mode)) >= order.index(free.class_of(kind, cmd, mode))
        assert free.may_wait(kind, cmd, mode) or not tight.may_wait(kind, cmd, mode)


def test_unlisted_commands_are_listed() -> None:
    owners, never_wait = policy("ota_*,*_ota_start,wifi_*,mqtt_*", "brew_*,set_mode:on").unlisted()
    assert {"restart", "factory_reset", "set_cloud_config"} <= set(owners)
    assert not {"ota_start", "pico_ota_start", "wifi_forget", "mqtt_config", "tare"} & set(owners)
    assert {"set_mode:eco", "enter_eco", "restart"} <= set(never_wait)
    assert not {"set_mode:on", "set_mode:off", "brew_start", "tare"} & set(never_wait)
    assert policy("*", "*").unlisted() == ([], [])


def test_a_head_is_classified_as_it_was_read() -> None:
    head = Message(rb'{"type":"command","\u0063md":"set_mode","mode":"on"}').peek_command()
    assert head is not None
    assert policy().class_of(head.type, head.cmd, head.mode) is USE


# The neutral dialect


def test_neutral_dialect_lets_only_owners_send_and_nothing_wait() -> None:
    neutral = Policy(NEUTRAL)
    for kind, cmd in (("command", "set_mode"), ("command", "tare"), ("request_state", None), ("other", None)):
        assert neutral.class_of(kind, cmd) is MANAGE
        assert not neutral.may_wait(kind, cmd, "off")


@pytest.mark.parametrize("kind", ["key_rotate", "connected", "error", " Error"])
def test_neutral_dialect_reserves_the_messages_of_the_relay(kind: str) -> None:
    assert Policy(NEUTRAL).class_of(kind) is RESERVED


def test_neutral_dialect_keeps_no_state_and_drops_no_message_of_a_device() -> None:
    assert (NEUTRAL.state_kinds, NEUTRAL.state_requests) == ({}, frozenset())
    for kind in ("status", "status_delta", "keepalive", "device_info", "log"):
        assert not NEUTRAL.is_superseded(kind)
        assert NEUTRAL.must_reach(kind, "info")


def test_state_kinds_follow_from_the_types_of_a_dialect() -> None:
    kinds = Dialect(state="all", state_change="some", numbered=frozenset({"tick"}), kept=("who",)).state_kinds
    assert kinds == {
        "all": StateKind.WHOLE,
        "some": StateKind.CHANGE,
        "tick": StateKind.NUMBER,
        "who": StateKind.KEPT,
    }
    assert Dialect(state_change="some").state_kinds == {}
    assert Dialect(state="all").state_kinds == {"all": StateKind.WHOLE}
    assert Dialect(state_request="ask", full_state_requests=frozenset({"ask_all"})).state_requests == {
        "ask",
        "ask_all",
    }


@pytest.mark.parametrize("types", [(), (Rule("key_rotate", USE, "is free"), Rule("hello", USE, "greets"))])
def test_no_dialect_frees_the_messages_of_the_relay(types: tuple[Rule, ...]) -> None:
    policy = Policy(Dialect(types=types))
    for kind in ("key_rotate", "connected", "error", "Key_Rotate "):
        assert policy.class_of(kind) is RESERVED
    assert policy.class_of("hello") is (USE if types else MANAGE)
