from collections.abc import Sequence

import pytest
import trio

from brewos_relay.api import passwords
from brewos_relay.api.answers import Refused
from brewos_relay.api.passwords import FRESH_S, PasswordCheck
from brewos_relay.api.throttle import Throttles
from brewos_relay.core import clock
from brewos_relay.registry.records import Change
from support.household import Household
from support.sign_ins import EMAIL, PASSWORD, add_account, ask, sign_in

NEW = "another battery staple"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every session be too old to set a password without the old one."""
    late_ms = clock.now_ms() + FRESH_S * 1000 + 60_000
    monkeypatch.setattr(passwords, "now_ms", lambda: late_ms)


async def signs_in(house: Household, password: str) -> bool:
    answer = await ask(house, "/auth/password", {"email": EMAIL, "password": password})
    assert answer.status in {200, 401}
    return answer.status == 200


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_who_came_by_a_link_may_set_a_password(house: Household, method: str) -> None:
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
async def test_later_no_first_password_is_set_with_a_token_alone(house: Household) -> None:
    session = await sign_in(house)
    answer = await ask(house, "/me/password", {"password": NEW}, method="PUT", token=session["accessToken"])
    assert answer.status == 403
    assert not await signs_in(house, NEW)


async def test_a_token_of_no_session_sets_no_password(house: Household) -> None:
    user = await add_account(house)
    token = house.keys.issue(user_id=user.id, email=EMAIL)
    answer = await ask(house, "/me/password", {"password": NEW}, method="PUT", token=token)
    assert answer.status == 403
    assert await signs_in(house, PASSWORD)
    assert (await ask(house, "/me/password", {"password": NEW}, method="PUT")).status == 401


async def guess(house: Household, check: PasswordCheck, network: str, password: str = "guess") -> str:
    try:
        user = await check.user_with(email=EMAIL, password=password, network=network)
    except Refused as refusal:
        return {429: "limited"}[refusal.status]
    return "wrong" if user is None else "right"


async def test_guesses_from_one_address_are_few(house: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "password_matches", lambda given, _phc: given == PASSWORD)
    await add_account(house)
    check = PasswordCheck(store=house.store, throttles=Throttles())
    results = [await guess(house, check, "192.0.2.1") for _ in range(10)]
    assert results == ["wrong"] * 8 + ["limited"] * 2
    assert await guess(house, check, "192.0.2.1", PASSWORD) == "limited"


async def test_many_strangers_do_not_guess_more_and_lock_nobody_out(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "password_matches", lambda given, _phc: given == PASSWORD)
    await add_account(house)
    check = PasswordCheck(store=house.store, throttles=Throttles())
    assert await guess(house, check, "home", PASSWORD) == "right"
    results = [await guess(house, check, f"stranger {number}") for number in range(100)]
    assert results.count("wrong") < 40
    assert results[-1] == "limited"
    for _ in range(20):
        assert await guess(house, check, "home", PASSWORD) == "right"


async def test_only_so_many_addresses_are_known(house: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "password_matches", lambda *_: True)
    monkeypatch.setattr(passwords, "_KNOWN", 3)
    await add_account(house)
    check = PasswordCheck(store=house.store, throttles=Throttles())
    for number in range(10):
        assert await guess(house, check, f"home {number}") == "right"
    assert len(check._known) == 3


async def test_passwords_that_wait_are_bounded(house: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_WAITING", 1)
    check = PasswordCheck(store=house.store, throttles=Throttles())
    refused: list[Refused] = []
    running = 0

    def work() -> None:
        nonlocal running
        running += 1
        trio.from_thread.run(trio.lowlevel.checkpoint)

    async def one() -> None:
        try:
            await check.run(work)
        except Refused as refusal:
            refused.append(refusal)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
    assert refused
    assert running + len(refused) == 10
    assert {refusal.status for refusal in refused} == {503}
    assert refused[0].headers["Retry-After"] == "2"
