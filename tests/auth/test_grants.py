import math
from dataclasses import replace

import pytest

from brewos_relay.auth.grants import grant_of, grant_to, principal_of
from brewos_relay.auth.tokens import TokenClaims
from brewos_relay.core.grant import FULL, NamedDevices, Principal, Rights
from brewos_relay.dialect import CommandClass
from brewos_relay.vocabulary import Role


def claims(devices: NamedDevices, *, role: Role = "owner", session_id: str | None = None) -> TokenClaims:
    return TokenClaims(
        user_id="ada",
        email="a@b.c",
        issued_at_s=0,
        expires_at_s=1,
        devices=devices,
        session_id=session_id,
        role=role,
    )


def test_the_principal_of_a_token_has_its_limits() -> None:
    named = claims(frozenset({"BRW-00000001"}), role="viewer", session_id="s-1")
    assert principal_of(named) == Principal(
        user_id="ada", session_id="s-1", role="viewer", devices=frozenset({"BRW-00000001"})
    )


@pytest.mark.parametrize(
    ("role", "may_command", "may_manage"),
    [("owner", True, True), ("member", True, False), ("viewer", False, False)],
)
def test_commands_allowed_by_each_role(role: Role, may_command: bool, may_manage: bool) -> None:
    grant = grant_of(role)
    assert grant.allows(CommandClass.USE) == may_command
    assert grant.allows(CommandClass.HOUSEHOLD) == may_command
    assert grant.allows(CommandClass.MANAGE) == may_manage


def test_member_with_an_end_cannot_change_household_settings() -> None:
    assert not grant_of("member", until_ms=2**50).allows(CommandClass.HOUSEHOLD)
    assert grant_of("member", until_ms=2**50).allows(CommandClass.USE)


def test_grant_has_user_session_and_end() -> None:
    grant = grant_of("member", until_ms=1_700_000_000_500, user_id="ada", session_id="s-1")
    assert (grant.user_id, grant.session_id, grant.until_s) == ("ada", "s-1", 1_700_000_000.5)
    assert grant_of("member").until_s == math.inf
    assert grant_of("member", until_ms=0).until_s == 0


def test_grant_follows_the_registry_unless_the_token_names_the_device() -> None:
    assert not grant_of("member").by_token
    assert grant_of("member", by_token=True).by_token


def test_an_owner_for_ever_may_do_everything() -> None:
    assert grant_of("owner") == FULL


def test_a_principal_is_granted_its_rights_and_keeps_the_limit_of_its_token() -> None:
    principal = principal_of(claims(frozenset(), role="member", session_id="s-1"))
    grant = grant_to(principal, Rights("viewer", until_ms=1_500))
    assert grant == replace(
        grant_of("viewer", until_ms=1_500, user_id="ada", session_id="s-1"), highest_role="member"
    )
    assert grant_to(principal, Rights("member", by_token=True)).by_token
