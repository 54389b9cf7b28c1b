from dataclasses import dataclass

import pytest

from brewos_relay.core.rights import NamedDevices, Principal, Rights, rights_of
from brewos_relay.vocabulary import Role

ONE = "BRW-00000001"
OTHER = "BRW-00000002"


@dataclass(frozen=True)
class Access:
    role: Role
    until_ms: int | None = None


def principal(role: Role = "owner", devices: NamedDevices = frozenset()) -> Principal:
    return Principal(user_id="ada", role=role, devices=devices)


def test_a_token_names_the_listed_devices_or_all() -> None:
    assert principal(devices=frozenset({ONE})).names(ONE)
    assert not principal(devices=frozenset({ONE})).names(OTHER)
    assert principal(devices="*").names(OTHER)
    assert not principal().names(ONE)


@pytest.mark.parametrize("devices", [frozenset({ONE}), "*"])
@pytest.mark.parametrize("held", [None, Access("owner"), Access("viewer", 5)])
def test_a_named_device_is_reached_with_the_role_of_the_token(
    devices: NamedDevices, held: Access | None
) -> None:
    assert rights_of(principal("member", devices), ONE, held) == Rights("member", by_token=True)


def test_another_device_is_reached_as_the_registry_says() -> None:
    named = principal(devices=frozenset({OTHER}))
    assert rights_of(named, ONE, None) is None
    assert rights_of(named, ONE, Access("member", 5)) == Rights("member", 5)


@pytest.mark.parametrize(
    ("token", "held", "role"),
    [("viewer", "owner", "viewer"), ("member", "owner", "member"), ("member", "viewer", "viewer")],
)
def test_the_role_of_a_token_caps_what_the_registry_says(token: Role, held: Role, role: Role) -> None:
    assert rights_of(principal(token), ONE, Access(held, 7)) == Rights(role, 7)
