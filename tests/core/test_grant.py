import dataclasses
import math

import pytest

from brewos_relay.core.grant import FULL, Grant
from brewos_relay.dialect import CommandClass

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
