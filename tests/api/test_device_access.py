from pathlib import Path

import pytest

from brewos_relay.api.authentication import Requester
from brewos_relay.api.device_access import DeviceAccess, require_access
from brewos_relay.api.payloads import Refused
from brewos_relay.auth.tokens import TokenClaims
from brewos_relay.core.grant import NamedDevices
from brewos_relay.vocabulary import Role, now_ms
from support.household import MACHINE, SECOND, STRANGE, Household, open_household

UNKNOWN = "BRW-0000004D"


def requester(user_id: str = "eve", devices: NamedDevices = frozenset(), role: Role = "owner") -> Requester:
    claims = TokenClaims(user_id, "e@example.org", 0, 1, devices, role=role)
    return Requester(user_id=user_id, email=claims.email, session_id=None, claims=claims, is_admin=False)


async def refusal(
    house: Household, asking: Requester, device_id: str, at_least: Role = "viewer"
) -> tuple[int, str]:
    with pytest.raises(Refused) as raised:
        await require_access(asking, device_id, store=house.store, at_least=at_least)
    return raised.value.status, raised.value.problem


async def test_an_id_may_be_in_any_case(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        found = await require_access(requester("ada"), MACHINE.lower(), store=house.store)
        assert (found.device_id, found.role, found.until_ms) == (MACHINE, "owner", None)
        assert found.device is not None
        assert found.from_registry is not None


@pytest.mark.parametrize(
    "device_id", [SECOND, UNKNOWN, "BRW-1", "", "x" * 300, "BRW-0000001\N{NULL}", "\udc80"]
)
async def test_unknown_device_and_device_of_another_user_are_refused_alike(
    tmp_path: Path, device_id: str
) -> None:
    async with open_household(tmp_path) as house:
        assert await refusal(house, requester(), device_id) == await refusal(house, requester(), UNKNOWN)
        assert (await refusal(house, requester(), device_id))[0] == 404


@pytest.mark.parametrize(
    ("devices", "device_id", "status"),
    [
        (frozenset({MACHINE}), MACHINE, None),
        (frozenset({MACHINE}), SECOND, 404),
        (frozenset({UNKNOWN}), UNKNOWN, None),
        ("*", STRANGE, None),
        ("*", UNKNOWN, 404),
    ],
)
async def test_token_gives_access_to_the_devices_that_it_names(
    tmp_path: Path, devices: NamedDevices, device_id: str, status: int | None
) -> None:
    async with open_household(tmp_path) as house:
        asking = requester(devices=devices, role="member")
        if status is not None:
            assert (await refusal(house, asking, device_id))[0] == status
        else:
            found = await require_access(asking, device_id, store=house.store)
            assert (found.role, found.from_registry) == ("member", None)


async def test_unregistered_device_cannot_be_changed(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        asking = requester(devices=frozenset({UNKNOWN}))
        assert (await refusal(house, asking, UNKNOWN, "owner"))[0] == 404


@pytest.mark.parametrize(
    ("role", "at_least", "reached"),
    [
        ("viewer", "viewer", True),
        ("viewer", "member", False),
        ("viewer", "owner", False),
        ("member", "member", True),
        ("member", "owner", False),
        ("owner", "owner", True),
    ],
)
async def test_requester_needs_the_required_role(
    tmp_path: Path, role: Role, at_least: Role, reached: bool
) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", role)
        by_registry, by_token = requester("bob"), requester("eve", frozenset({MACHINE}), role)
        for asking in (by_registry, by_token):
            if reached:
                found: DeviceAccess = await require_access(
                    asking, MACHINE, store=house.store, at_least=at_least
                )
                assert found.role == role
            else:
                assert (await refusal(house, asking, MACHINE, at_least))[0] == 403


async def test_expired_access_is_refused(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member", until_ms=now_ms() - 1)
        await house.give("cleo", "viewer", until_ms=now_ms() + 60_000)
        assert (await refusal(house, requester("bob"), MACHINE))[0] == 404
        found = await require_access(requester("cleo"), MACHINE, store=house.store)
        assert found.until_ms is not None
