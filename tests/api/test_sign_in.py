import logging
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.identity_providers import GoogleVerifier
from brewos_relay.errors import IdentityUnavailable
from brewos_relay.registry.accounts import all_users
from brewos_relay.registry.login_sessions import sessions_of
from brewos_relay.texts import is_showable
from brewos_relay.vocabulary import now_ms
from support.household import Household, open_household
from support.issuer import CLIENT_ID, IssuerKey, open_issuer
from support.registry import remove_user
from support.sign_ins import (
    EMAIL,
    PASSWORD,
    PlainVerifier,
    add_account,
    admitted,
    ask,
    invited,
    proven,
    sign_in,
)

BODIES = {
    "google": {"credential": "good"},
    "oidc": {"credential": "good"},
    "facebook": {"accessToken": "good"},
}


@pytest.mark.parametrize("kind", BODIES)
async def test_valid_proof_starts_a_session(tmp_path: Path, kind: str) -> None:
    rules = AccountRules(verifiers={kind: PlainVerifier(good=proven())})
    async with open_household(tmp_path, accounts=rules) as house:
        answer = await ask(house, f"/auth/{kind}", BODIES[kind])
        assert answer.status == 200
        session = answer.content
        assert set(session) == {"accessToken", "refreshToken", "expiresAt", "user"}
        assert session["expiresAt"] == pytest.approx((time.time() + 3600) * 1000, abs=5_000)
        assert session["user"].pop("id")
        assert session["user"] == {
            "email": EMAIL,
            "name": "Ada",
            "picture": "https://pictures.example/ada.png",
        }
        me = await ask(house, "/auth/me", method="GET", token=session["accessToken"])
        assert me.status == 200
        assert me.content["user"]["email"] == EMAIL
        assert me.content["isAdmin"] is False, "signing in first makes no administrator"


@pytest.mark.parametrize("kind", BODIES)
async def test_unconfigured_sign_in_is_a_404_that_names_another_way(house: Household, kind: str) -> None:
    answer = await ask(house, f"/auth/{kind}", BODIES[kind])
    assert answer.status == 404
    assert "is not set up" in answer.content["error"]
    assert "/login" in answer.content["error"]


@pytest.mark.parametrize("kind", BODIES)
async def test_invalid_proof_is_a_401(tmp_path: Path, kind: str) -> None:
    rules = AccountRules(verifiers={kind: PlainVerifier()})
    async with open_household(tmp_path, accounts=rules) as house:
        answer = await ask(house, f"/auth/{kind}", BODIES[kind])
        assert answer.status == 401
        assert "signature is wrong" in answer.content["error"]
        assert await house.store.read(all_users) == []


async def test_unreachable_issuer_is_a_503_with_retry_after(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unavailable = PlainVerifier(good=IdentityUnavailable("no answer within 5 s"))
    async with open_household(tmp_path, accounts=AccountRules(verifiers={"google": unavailable})) as house:
        with caplog.at_level(logging.WARNING):
            answer = await ask(house, "/auth/google", BODIES["google"])
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "5"
    assert "no answer within 5 s" in caplog.text


async def test_google_id_token_signs_in(tmp_path: Path) -> None:
    key = IssuerKey("RS256", "one")
    with open_issuer(key) as issuer:
        rules = AccountRules(
            verifiers={"google": GoogleVerifier(client_ids=[CLIENT_ID], jwks_url=issuer.keys_url)}
        )
        async with open_household(tmp_path, accounts=rules) as house:
            told: dict[str, Any] = {"iss": "https://accounts.google.com", "email": "ada@gmail.com"}
            answer = await ask(house, "/auth/google", {"credential": issuer.token(**told)})
            assert answer.status == 200
            assert answer.content["user"]["email"] == "ada@gmail.com"
            forged = issuer.token(key=IssuerKey("RS256", "one"), **told)
            assert (await ask(house, "/auth/google", {"credential": forged})).status == 401
            foreign = issuer.token(aud="somebody-else", **told)
            assert (await ask(house, "/auth/google", {"credential": foreign})).status == 401


async def test_stranger_without_an_invite_is_refused(tmp_path: Path) -> None:
    verifier = PlainVerifier(good=proven(), other=proven("eve@example.org"))
    rules = AccountRules(verifiers={"google": verifier}, open_to_all=False)
    async with open_household(tmp_path, accounts=rules) as house:
        refused = await ask(house, "/auth/google", {"credential": "other"})
        assert refused.status == 403
        assert "invite" in refused.content["error"]
        await invited(house, "eve@example.org")
        assert (await ask(house, "/auth/google", {"credential": "good"})).status == 403
        assert (await ask(house, "/auth/google", {"credential": "other"})).status == 200


async def test_unverified_address_signs_in_to_no_account(tmp_path: Path) -> None:
    verifier = PlainVerifier(good=proven(email_verified=False))
    async with open_household(tmp_path, accounts=AccountRules(verifiers={"oidc": verifier})) as house:
        await add_account(house)
        assert (await ask(house, "/auth/oidc", {"credential": "good"})).status == 403


async def test_a_link_works_once(house: Household) -> None:
    token = await invited(house)
    first = await ask(house, "/auth/invite", {"token": token})
    assert first.status == 200
    assert first.content["user"]["email"] == EMAIL
    assert first.content["user"]["name"] == ""
    second = await ask(house, "/auth/invite", {"token": token})
    assert second.status == 401
    assert "used" in second.content["error"]


async def test_browser_whose_answer_was_lost_redeems_its_link_again(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, nonce = await invited(house), "n" * 22
    lost = await ask(house, "/auth/invite", {"token": token, "nonce": nonce})
    assert lost.status == 200
    for other in ({"nonce": "o" * 22}, {}):
        assert (await ask(house, "/auth/invite", {"token": token, **other})).status == 401
    again = await ask(house, "/auth/invite", {"token": token, "nonce": nonce})
    assert (again.status, again.content["user"]) == (200, lost.content["user"])
    late_ms = now_ms() + 61_000
    monkeypatch.setattr("brewos_relay.api.sign_in.now_ms", lambda: late_ms)
    assert (await ask(house, "/auth/invite", {"token": token, "nonce": nonce})).status == 401


@pytest.mark.parametrize("nonce", ["", "short", "n" * 129, 1, ["n" * 22]])
async def test_a_nonce_that_could_be_guessed_is_refused_and_uses_nothing_up(
    house: Household, nonce: object
) -> None:
    token = await invited(house)
    assert (await ask(house, "/auth/invite", {"token": token, "nonce": nonce})).status == 400
    assert (await ask(house, "/auth/invite", {"token": token, "nonce": None})).status == 200


async def test_expired_and_unknown_links_are_refused_alike(house: Household) -> None:
    expired = await ask(house, "/auth/invite", {"token": await invited(house, for_ms=-1)})
    unknown = await ask(house, "/auth/invite", {"token": "never-was"})
    assert expired.status == unknown.status == 401
    assert expired.content == unknown.content


async def test_a_password_signs_in_in_any_case_of_the_address(house: Household) -> None:
    await add_account(house)
    answer = await ask(house, "/auth/password", {"email": " ADA@Example.org ", "password": PASSWORD})
    assert answer.status == 200
    assert answer.content["user"]["email"] == EMAIL


@pytest.mark.parametrize(
    ("email", "password"),
    [
        (EMAIL, "correct horse batterz"),
        (EMAIL, ""),
        ("eve@example.org", PASSWORD),
        ("bob@example.org", PASSWORD),
        ("no address", PASSWORD),
    ],
)
async def test_wrong_password_and_unknown_address_are_refused_alike(
    house: Household, email: str, password: str
) -> None:
    await add_account(house)
    await sign_in(house, "bob@example.org")  # this user has no password
    answer = await ask(house, "/auth/password", {"email": email, "password": password})
    assert answer.status == 401
    assert answer.content == {"error": "The e-mail address or the password is wrong."}


@pytest.mark.parametrize("path", ["google", "oidc", "facebook", "invite", "password"])
async def test_a_body_of_another_shape_is_a_400(house: Household, path: str) -> None:
    for body in (b"", b"{}", b"[]", b'{"credential":1,"token":1,"email":1}', b"\xff"):
        answer = await house.ask("POST", f"/auth/{path}", by=None, data=body)
        assert answer.status == 400, body


async def test_attempts_are_limited_by_address(house: Household) -> None:
    assert await admitted(house, "/auth/invite", {"token": "a guess"}, but=401) >= 30
    refused = await ask(house, "/auth/google", BODIES["google"])
    assert refused.status == 429
    assert int(refused.headers["Retry-After"]) > 0


async def test_session_lists_where_it_was_started(house: Household) -> None:
    client = house.app.test_client()
    response = await client.post(
        "/api/auth/invite",
        json={"token": await invited(house)},
        headers={"User-Agent": "Kitchen\u00a0tablet " + "x" * 400},
        scope_base={"client": ("192.0.2.7", 4711)},
    )
    user_id = (await response.get_json())["user"]["id"]
    (session,) = await house.store.read(sessions_of, user_id, now_ms=0)
    assert session.address == "192.0.2.7"
    assert session.user_agent is not None
    assert len(session.user_agent) == 300
    assert is_showable(session.user_agent)


async def test_no_secret_is_stored_in_plain_text(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = await invited(house)
        session = (await ask(house, "/auth/invite", {"token": token})).content
        await ask(house, "/me/password", {"password": PASSWORD}, method="PUT", token=session["accessToken"])
    stored = b"".join([await path.read_bytes() for path in await trio.Path(tmp_path).glob("registry.db*")])
    assert EMAIL.encode() in stored
    for secret in (token, session["refreshToken"], session["accessToken"], PASSWORD):
        assert secret.encode() not in stored


async def test_removed_user_cannot_refresh(tmp_path: Path) -> None:
    async with open_household(tmp_path, request_limits=RequestLimits()) as house:
        session = await sign_in(house)
        assert await house.store.write(remove_user, session["user"]["id"], now_ms=1)
        assert (await ask(house, "/auth/me", method="GET", token=session["accessToken"])).status == 401
        refreshed = await ask(house, "/auth/refresh", {"refreshToken": session["refreshToken"]})
        assert refreshed.status == 401
