import dataclasses
import math
from typing import Any

import msgspec
import pytest

from brewos_relay.core.grant import FULL, Grant, is_named
from brewos_relay.core.limits import Limits
from brewos_relay.messages import CommandHead, Message, encode

OWNERS = Limits().owner_commands
TARE = {"type": "command", "cmd": "tare"}
RESTART = {"type": "command", "cmd": "restart"}


def head_of(content: dict[str, Any] | bytes) -> CommandHead:
    head = (Message(content) if isinstance(content, bytes) else encode(content)).peek_command()
    assert head is not None
    return head


# Which messages patterns name


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"type": "command", "cmd": "set_mode", "mode": "on"}, True),
        ({"type": "command", "cmd": " Set_Mode ", "mode": " ON"}, True),
        ({"type": "command", "cmd": "set_mode", "mode": "standby"}, False),
        ({"type": "command", "cmd": "set_mode", "mode": "off"}, False),
        ({"type": "command", "cmd": "set_mode", "mode": "*"}, False),
        ({"type": "command", "cmd": "set_mode", "mode": 1}, True),
        ({"type": "command", "cmd": "set_mode", "mode": None}, True),
        ({"type": "command", "cmd": "set_mode"}, True),
        ({"type": "command", "cmd": "tare"}, False),
        ({"type": "command", "cmd": "tare", "mode": "on"}, False),
        ({"type": "command", "cmd": "pico_ota_start"}, True),
        ({"type": "command", "cmd": None}, True),
        ({"type": "command", "cmd": ["tare"]}, True),
        ({"type": "command"}, True),
        ({"type": " COMMAND\t", "cmd": "exit_eco"}, True),
        ({"type": "Command", "cmd": "tare"}, False),
        ({"type": "brew_start"}, True),
        ({"type": "brew_start", "cmd": "tare"}, True),
        ({"type": " Restart"}, True),
        ({"type": "getConfig"}, False),
        ({"type": "set_mode", "mode": "on"}, False),  # nothing that a machine knows
    ],
)
def test_what_never_waits_is_named_by_its_patterns(content: dict[str, Any], named: bool) -> None:
    assert is_named(head_of(content), Limits().never_wait) == named


@pytest.mark.parametrize(
    "head",
    [
        CommandHead(type="command", cmd="restart\0"),
        CommandHead(type="command", cmd="restart \0 tare"),
        CommandHead(type="command\0x", cmd="restart"),
        CommandHead(type="command", cmd="set_mode", mode="on\0off"),
        CommandHead(type="restart\0x"),
    ],
    ids=["at the end", "after a blank", "in the type", "in the mode", "in another type"],
)
def test_a_nul_is_no_way_around_a_pattern(head: CommandHead) -> None:
    assert is_named(head, Limits().never_wait)


@pytest.mark.parametrize(
    "payload",
    [
        rb'{"type":"command","cmd":"restart\u0000"}',
        rb'{"type":"command","cmd":"tare","cmd\u0000":"restart"}',
        rb'{"type":"getConfig","type\u0000":"command","cmd":"restart"}',
        rb'{"type":"command","cmd":"set_mode","mode":"off","mode\u0000":"on"}',
    ],
)
def test_a_nul_anywhere_makes_a_command_of_which_nobody_knows_what_it_is(payload: bytes) -> None:
    assert is_named(head_of(payload), ("restart",))
    assert is_named(head_of(payload), ("set_mode:on",))


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (b'{"type":"command","cmd":"tare","cmd":"restart"}', True),
        (b'{"type":"getConfig","cmd":"restart","type":"command"}', True),
        (rb'{"type":"command","\u0063md":"restart"}', True),
        (rb'{"type":"command","cmd":"\u0072estart"}', True),
        (b'{"type":"command","cmd":"restart","cmd":"tare"}', False),  # machines take the last one, too
    ],
)
def test_of_a_key_that_comes_twice_the_last_one_counts_however_it_is_spelled(
    payload: bytes, named: bool
) -> None:
    assert is_named(head_of(payload), ("restart",)) == named


def test_a_pattern_may_name_any_mode() -> None:
    head = head_of({"type": "command", "cmd": "set_eco", "mode": "x"})
    assert is_named(head, ("set_eco:*",))
    assert not is_named(head, ())


@pytest.mark.parametrize("pattern", ["set_*:on", "*:on", "set_mode:o?", "set_mode"])
def test_a_command_that_does_not_tell_its_mode_may_be_in_any(pattern: str) -> None:
    assert is_named(head_of({"type": "command", "cmd": "set_mode"}), (pattern,))
    assert is_named(head_of({"type": "command", "cmd": "set_mode", "mode": "on"}), (pattern,))
    assert not is_named(head_of({"type": "command", "cmd": "tare"}), ("set_*:on", "set_mode"))


def test_messagepack_is_taken_for_what_the_machine_will_get() -> None:
    packed = Message(msgspec.msgpack.encode(TARE | {"cmd\0": "restart"}), is_text=False).as_text()
    assert packed is not None
    assert is_named(head_of(packed.payload), ("restart",))


# What a grant allows


@pytest.mark.parametrize("cmd", ["ota_start", "esp32_ota_start", "restart", "factory_reset"])
@pytest.mark.parametrize("kind", [str, str.upper, lambda cmd: f"  {cmd} "], ids=["as is", "upper", "blanks"])
def test_what_could_take_a_machine_away_is_its_owners_alone(cmd: str, kind: Any) -> None:
    head = head_of({"type": "command", "cmd": kind(cmd)})
    assert Grant().allows(head, OWNERS)
    assert not Grant(may_manage=False).allows(head, OWNERS)
    assert not Grant(may_command=False, may_manage=False).allows(head, OWNERS)


@pytest.mark.parametrize(
    "content",
    [
        *({"type": "command", "cmd": cmd} for cmd in ("wifi_config", "wifi_forget", "set_cloud_config")),
        {"type": "command", "cmd": "set_cloud_config", "mode": "x"},
        {"type": "command"},
        {"type": "command", "cmd": 7},
        {"type": "restart"},
    ],
)
def test_whoever_may_not_manage_may_not_do_it_by_another_name(content: dict[str, Any]) -> None:
    assert not Grant(may_manage=False).allows(head_of(content), OWNERS)
    assert FULL.allows(head_of(content), OWNERS)


@pytest.mark.parametrize(
    "content",
    [
        TARE,
        {"type": "command", "cmd": "set_mode", "mode": "on"},
        {"type": "command", "cmd": "set_temp", "temp": 93.5},
        {"type": "command", "cmd": "check_update"},
        {"type": "getConfig"},
        {"type": "backflush", "cmd": "record_maintenance"},
    ],
)
def test_everything_else_is_for_whoever_may_command(content: dict[str, Any]) -> None:
    assert Grant(may_manage=False).allows(head_of(content), OWNERS)
    assert not Grant(may_command=False, may_manage=False).allows(head_of(content), OWNERS)


def test_managing_alone_is_nothing() -> None:
    grant = Grant(may_command=False, may_manage=True)
    assert not grant.allows(head_of(TARE), OWNERS)
    assert not grant.allows(head_of(RESTART), OWNERS)


def test_which_commands_are_the_owners_is_a_setting() -> None:
    grant = Grant(may_manage=False)
    assert not grant.allows(head_of(TARE), ("tare",))
    assert grant.allows(head_of(RESTART), ("tare",))
    assert not grant.allows(head_of({"type": "command"}), ()), "whatever it is, it does not say"


def test_a_grant_is_a_value_and_the_full_one_is_for_ever() -> None:
    assert Grant() == FULL
    assert (FULL.user_id, FULL.session_id, FULL.until_s) == (None, None, math.inf)
    assert FULL.may_command
    assert FULL.may_manage
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.may_manage = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        Grant("ada")  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["key_rotate", " Key_Rotate", "key_rotate\t"])
def test_nobody_gives_a_machine_another_key_by_saying_so(kind: str) -> None:
    assert not FULL.allows(head_of({"type": kind, "key": "k" * 43}), ())
    assert FULL.allows(head_of({"type": "command", "cmd": kind}), ())
