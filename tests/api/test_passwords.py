import itertools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from brewos_relay.api import passwords
from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.passwords import FRESH_S, PasswordCheck
from brewos_relay.api.payloads import Refused
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.errors import RegistryError
from brewos_relay.networks import network_of
from brewos_relay.registry import known_networks
from brewos_relay.registry.accounts import add_user, set_password_hash
from brewos_relay.registry.records import Change
from brewos_relay.vocabulary import now_ms
from support.household import Household, open_household
from support.sign_ins import EMAIL, PASSWORD, PlainVerifier, add_account, ask, proven, sign_in

NEW = "another battery staple"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every session too old to set a password without the current one."""
    late_ms = now_ms() + FRESH_S * 1000 + 60_000
    monkeypatch.setattr(passwords, "now_ms", lambda: late_ms)


async def signs_in(house: Household, password: str) -> bool:
    answer = await ask(house, "/auth/password", {"email": EMAIL, "password": password})
    assert answer.status in {200, 401}
    return answer.status == 200


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_fresh_session_may_set_a_password(house: Household, method: str) -> None:
    session = await sign_in(house)
    answer = await ask(house, "/me/password", {"password": NEW}, method=method, token=session["accessToken"])
    assert (answer.status, answer.content) == (200, {"endedSessions": 0})
    assert await signs_in(house, NEW)


@pytest.mark.parametrize("password", ["short", "x" * 201, ""])
async def test_a_password_that_is_too_easy_is_a_400_that_does_not_repeat_it(
    house: Household, password: str
) -> None:
    session = await sign_in(house)
    answer = await ask(
        house, "/me/password", {"password": password}, method="PUT", token=session["accessToken"]
    )
    assert answer.status == 400
    assert "password" in answer.content["error"]
    assert not password or password not in answer.content["error"]


async def test_changing_it_ends_the_other_sessions_before_the_answer(house: Household) -> None:
    await add_account(house)
    applied: list[Change] = []

    async def apply(changes: Sequence[Change]) -> None:
        applied.extend(changes)

    house.store.watch_changes(apply)
    kitchen, phone = await sign_in(house), await sign_in(house)
    answer = await ask(house, "/me/password", {"password": NEW}, method="PUT", token=phone["accessToken"])
    assert answer.content == {"endedSessions": 1}
    assert [change.kind for change in applied] == ["session_ended"]
    me = {"method": "GET"}
    assert (await ask(house, "/auth/me", token=kitchen["accessToken"], **me)).status == 401
    assert (await ask(house, "/auth/me", token=phone["accessToken"], **me)).status == 200
    assert await signs_in(house, NEW)
    assert not await signs_in(house, PASSWORD)


async def test_password_can_be_removed_with_another_way_to_sign_in_only(tmp_path: Path) -> None:
    issuer = proven().issuer
    rules = AccountRules(verifiers={"oidc": PlainVerifier(good=proven())}, issuers={issuer})
    async with open_household(tmp_path, accounts=rules) as house:
        await add_account(house)
        session = await sign_in(house)
        token = session["accessToken"]
        me = await ask(house, "/auth/me", method="GET", token=token)
        assert (me.content["hasPassword"], me.content["hasOtherWay"]) == (True, False)
        refused = await ask(house, "/me/password/remove", {}, token=token)
        assert refused.status == 409
        assert await signs_in(house, PASSWORD)

        other = (await ask(house, "/auth/oidc", {"credential": "good"})).content["accessToken"]
        me = await ask(house, "/auth/me", method="GET", token=token)
        assert (me.content["hasPassword"], me.content["hasOtherWay"]) == (True, True)
        removed = await ask(house, "/me/password/remove", {}, token=token)
        assert removed.status == 200
        assert removed.content["endedSessions"] >= 2
        assert (await ask(house, "/auth/me", method="GET", token=other)).status == 401
        me = await ask(house, "/auth/me", method="GET", token=token)
        assert me.content["hasPassword"] is False
        assert not await signs_in(house, PASSWORD)


@pytest.mark.usefixtures("later")
async def test_later_removing_it_needs_the_current_password(tmp_path: Path) -> None:
    rules = AccountRules(verifiers={"oidc": PlainVerifier(good=proven())}, issuers={proven().issuer})
    async with open_household(tmp_path, accounts=rules) as house:
        await add_account(house)
        token = (await ask(house, "/auth/oidc", {"credential": "good"})).content["accessToken"]
        for body in ({}, {"currentPassword": "wrong password"}):
            assert (await ask(house, "/me/password/remove", body, token=token)).status == 403
        right = {"currentPassword": PASSWORD}
        assert (await ask(house, "/me/password/remove", right, token=token)).status == 200


@pytest.mark.usefixtures("later")
async def test_later_the_current_password_is_needed(house: Household) -> None:
    await add_account(house)
    session = await sign_in(house)
    for current, status in ((None, 403), ("wrong password", 403), (PASSWORD, 200)):
        body = {"password": NEW} | ({"currentPassword": current} if current else {})
        answer = await ask(house, "/me/password", body, method="PUT", token=session["accessToken"])
        assert answer.status == status
        assert await signs_in(house, NEW) is (status == 200)


@pytest.mark.usefixtures("later")
async def test_old_session_may_not_set_a_first_password(house: Household) -> None:
    session = await sign_in(house)
    answer = await ask(house, "/me/password", {"password": NEW}, method="PUT", token=session["accessToken"])
    assert answer.status == 403
    assert not await signs_in(house, NEW)


async def test_token_without_a_session_sets_no_password(house: Household) -> None:
    user = await add_account(house)
    token = house.keys.issue(user_id=user.id, email=EMAIL)
    answer = await ask(house, "/me/password", {"password": NEW}, method="PUT", token=token)
    assert answer.status == 403
    assert await signs_in(house, PASSWORD)
    assert (await ask(house, "/me/password", {"password": NEW}, method="PUT")).status == 401


async def guess(house: Household, check: PasswordCheck, network: str, password: str = "guess") -> str:
    try:
        user = await check.authenticate(email=EMAIL, password=password, network=network)
    except Refused as refusal:
        return {429: "limited"}[refusal.status]
    return "wrong" if user is None else "right"


async def test_guesses_from_one_address_are_few(house: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "password_matches", lambda given, _phc: given == PASSWORD)
    await add_account(house)
    check = PasswordCheck(store=house.store, request_limits=RequestLimits())
    results = [await guess(house, check, "192.0.2.1") for _ in range(10)]
    assert results == ["wrong"] * 8 + ["limited"] * 2
    assert await guess(house, check, "192.0.2.1", PASSWORD) == "limited"


async def test_guesses_from_many_addresses_are_limited_without_lockout(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "password_matches", lambda given, _phc: given == PASSWORD)
    await add_account(house)
    check = PasswordCheck(store=house.store, request_limits=RequestLimits())
    assert await guess(house, check, "home", PASSWORD) == "right"
    results = [await guess(house, check, f"stranger {number}") for number in range(100)]
    assert results.count("wrong") < 40
    assert results[-1] == "limited"
    for _ in range(20):
        assert await guess(house, check, "home", PASSWORD) == "right"


async def test_known_networks_of_an_account_are_independent_of_other_accounts(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "password_matches", lambda given, _phc: given == PASSWORD)
    monkeypatch.setattr(known_networks, "KEPT_PER_ACCOUNT", 3)
    await add_account(house)
    other = await house.store.write(add_user, email="eve@example.org", name=None, now_ms=1)
    await house.store.write(set_password_hash, other.id, "a hash")
    check = PasswordCheck(store=house.store, request_limits=RequestLimits())
    assert await guess(house, check, "home", PASSWORD) == "right"
    for number in range(20):
        user = await check.authenticate(email="eve@example.org", password=PASSWORD, network=f"eve {number}")
        assert user is not None
    await lock_out_strangers(house, check)
    assert await guess(house, check, "home", PASSWORD) == "right"


async def test_known_networks_survive_a_restart(house: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "password_matches", lambda given, _phc: given == PASSWORD)
    await add_account(house)
    before = PasswordCheck(store=house.store, request_limits=RequestLimits())
    assert await guess(house, before, "home", PASSWORD) == "right"
    after = PasswordCheck(store=house.store, request_limits=RequestLimits())
    await lock_out_strangers(house, after)
    assert await guess(house, after, "home", PASSWORD) == "right"


async def lock_out_strangers(house: Household, check: PasswordCheck) -> None:
    """Use up the attempts of unknown networks at an account."""
    for number in range(100):
        if await guess(house, check, f"stranger {number}") == "limited":
            return
    raise AssertionError("strangers are not limited")


def neighbours(count: int) -> list[str]:
    """Return `count` /64 of one /56."""
    return [network_of(f"2001:db8:0:{number:x}::1") for number in range(count)]


async def test_a_56_has_as_many_attempts_at_an_account_as_two_64(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "password_matches", lambda given, _phc: given == PASSWORD)
    await add_account(house)
    check = PasswordCheck(store=house.store, request_limits=RequestLimits())
    results = [await guess(house, check, network) for network in neighbours(45)]
    assert results == ["wrong"] * 16 + ["limited"] * 29


async def test_45_connections_of_one_56_do_not_lock_out_the_owner(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner signs in from a known network, another user from an unknown one."""
    monkeypatch.setattr(passwords, "password_matches", slow_match)
    await add_account(house)
    other = await house.store.write(add_user, email="bob@example.org", name=None, now_ms=1)
    await house.store.write(set_password_hash, other.id, "a hash")
    request_limits = RequestLimits()
    check = PasswordCheck(store=house.store, request_limits=request_limits)
    assert await guess(house, check, "home", PASSWORD) == "right"
    ended, crowded = Counter[str](), trio.Event()

    async def attack(network: str) -> None:
        for number in itertools.count():
            try:
                await check.authenticate(email=f"{number}@example.org", password="guess", network=network)
                ended["wrong"] += 1
            except Refused as refusal:
                ended[str(refusal.status)] += 1
                if ended["503"] == 10:
                    crowded.set()
                await trio.sleep(0.001)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for network in neighbours(45):
                nursery.start_soon(attack, network)
            with trio.fail_after(20):
                await crowded.wait()
            for _ in range(25):
                assert await guess(house, check, "home", PASSWORD) == "right"
                user = await check.authenticate(
                    email="bob@example.org", password=PASSWORD, network="192.0.2.9"
                )
                assert user is not None
            nursery.cancel_scope.cancel()


def slow_match(given: str, _phc: str | None) -> bool:
    time.sleep(0.002)
    return given == PASSWORD


async def test_an_attempt_that_ends_in_503_is_not_counted(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_account(house)
    check = PasswordCheck(store=house.store, request_limits=RequestLimits())

    async def busy(*_: object, **__: object) -> bool:
        raise Refused("busy", status=503)

    with monkeypatch.context() as patch:
        patch.setattr(check, "run", busy)
        for _ in range(100):
            with pytest.raises(Refused, match="busy"):
                await check.authenticate(email=EMAIL, password=PASSWORD, network="192.0.2.1")
    monkeypatch.setattr(passwords, "password_matches", lambda given, _phc: given == PASSWORD)
    results = [await guess(house, check, "192.0.2.1") for _ in range(10)]
    assert results == ["wrong"] * 8 + ["limited"] * 2


@pytest.mark.parametrize("way", ["password", "invite", "google", "refresh", "me"])
async def test_a_registry_that_fails_costs_no_attempt(
    house: Household, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The attempt is given back for every way to sign in."""
    await add_account(house)
    token = (await sign_in(house))["accessToken"] if way == "me" else None
    request_limits = house.request_limits
    limited = request_limits.refreshes if way == "refresh" else request_limits.sign_ins
    path, body, method = {
        "password": ("/auth/password", {"email": EMAIL, "password": PASSWORD}, "POST"),
        "invite": ("/auth/invite", {"token": "t" * 43}, "POST"),
        "google": ("/auth/google", {"credential": "c"}, "POST"),
        "refresh": ("/auth/refresh", {"refreshToken": "t" * 43}, "POST"),
        "me": ("/me/password", {"password": NEW}, "PUT"),
    }[way]

    async def fail(*_: object, **__: object) -> None:
        raise RegistryError("closed for the day")

    for name in ("read", "write", "write_anonymous", "write_as"):
        monkeypatch.setattr(house.store, name, fail)
    given_back = 0
    give_back = limited.give_back

    def count(key: str, *, about: str = "") -> None:
        nonlocal given_back
        given_back += 1
        give_back(key, about=about)

    monkeypatch.setattr(limited, "give_back", count)
    answer = await ask(house, path, body, method=method, token=token)
    if way == "google":  # this way is not set up, which is no 503
        assert (answer.status, given_back) == (404, 0)
    else:
        assert (answer.status, given_back) == (503, 1)
