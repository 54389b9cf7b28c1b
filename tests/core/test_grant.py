import dataclasses
import math
from dataclasses import dataclass

import pytest

from brewos_relay.core.grant import FULL, ClientCounts, Grant, NamedDevices, Principal, Rights, rights_of
from brewos_relay.dialect import CommandClass
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
def test_role_of_a_token_limits_the_role_of_the_registry(token: Role, held: Role, role: Role) -> None:
    assert rights_of(principal(token), ONE, Access(held, 7)) == Rights(role, 7)


OWNER = Grant()
MEMBER = Grant(may_manage=False)
GUEST = Grant(may_manage=False, until_s=2e9)
VIEWER = Grant(may_command=False, may_manage=False)


@pytest.mark.parametrize(
    ("needed", "allowed"),
    [
        (CommandClass.USE, [OWNER, MEMBER, GUEST]),
        (CommandClass.HOUSEHOLD, [OWNER, MEMBER]),
        (CommandClass.MANAGE, [OWNER]),
        (CommandClass.RESERVED, []),
    ],
)
def test_each_class_of_commands_has_its_senders(needed: CommandClass, allowed: list[Grant]) -> None:
    assert [grant for grant in (OWNER, MEMBER, GUEST, VIEWER) if grant.allows(needed)] == allowed


def test_an_owner_with_an_end_time_is_an_owner_until_then() -> None:
    assert Grant(until_s=2e9).allows(CommandClass.HOUSEHOLD)


def test_managing_alone_allows_nothing() -> None:
    grant = Grant(may_command=False, may_manage=True)
    assert not any(grant.allows(needed) for needed in CommandClass)


def test_a_grant_is_a_value_and_the_full_one_has_no_end() -> None:
    assert Grant() == FULL
    assert (FULL.user_id, FULL.session_id, FULL.until_s) == (None, None, math.inf)
    assert FULL.may_command
    assert FULL.may_manage
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.may_manage = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        Grant("ada")  # type: ignore[call-arg]


ADA, BOB = Grant(user_id="ada"), Grant(user_id="bob")


def test_count_of_a_user_is_attached_clients() -> None:
    client_counts = ClientCounts()
    for grant in (ADA, BOB, ADA):
        client_counts.add(grant)
    assert (client_counts.of(ADA), client_counts.of(BOB)) == (2, 1)
    client_counts.remove(ADA)
    assert (client_counts.of(ADA), client_counts.of(BOB)) == (1, 1)


def test_users_without_clients_are_forgotten() -> None:
    client_counts = ClientCounts()
    client_counts.add(ADA)
    assert len(client_counts) == 1
    client_counts.remove(ADA)
    assert len(client_counts) == 0
    assert client_counts.of(ADA) == 0


def test_clients_without_a_user_or_with_a_device_token_are_not_counted() -> None:
    client_counts = ClientCounts()
    for grant in (Grant(user_id="ada", by_token=True), FULL):
        client_counts.add(grant)
        assert client_counts.of(grant) == 0
        assert client_counts.of(ADA) == 0
        client_counts.remove(grant)
    assert len(client_counts) == 0
