"""Signing in on the page of an identity provider, with a local issuer."""

from collections.abc import Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from quart import Response

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.auth.code_flow import ATTEMPT_S, COOKIE, CodeFlow
from brewos_relay.auth.identity_providers import Verifier
from brewos_relay.registry.accounts import all_users
from support.household import Household, open_household
from support.issuer import (
    CLIENT_ID,
    CLIENT_SECRET,
    DISCOVERY_PATH,
    TOKEN_PATH,
    Answer,
    Issuer,
    IssuerKey,
    open_issuer,
)
from support.sign_ins import EMAIL, admitted, invited

KEY = IssuerKey("ES256", "one")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with open_issuer(KEY) as opened:
        yield opened


def rules(issuer: Issuer, **changed: Any) -> AccountRules:
    verifier = Verifier(issuer=issuer.url, audiences=[CLIENT_ID])
    flow = CodeFlow(
        name="Home",
        verifier=verifier,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uri="http://localhost/login/callback",
    )
    return AccountRules(verifiers={"oidc": verifier}, code_flows={"oidc": flow}, **changed)


async def post(house: Household, step: str, body: Any, *, cookie: str = "", **headers: str) -> Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if cookie:
        sent["Cookie"] = f"{COOKIE}={cookie}"
    client = house.app.test_client(use_cookies=False)
    return await client.post(f"/api/auth/code/{step}", json=body, headers=sent)


def cookies_of(response: Response) -> SimpleCookie:
    cookies = SimpleCookie()
    for line in response.headers.getlist("Set-Cookie"):
        cookies.load(line)
    return cookies


async def start(house: Household, issuer: Issuer) -> tuple[str, dict[str, str]]:
    """Begin to sign in, and go to the issuer. Returns the cookie, and what the issuer sends back."""
    response = await post(house, "start", {"kind": "oidc"})
    assert response.status_code == 200
    url = (await response.get_json())["url"]
    assert url.startswith(f"{issuer.url}/authorize?")
    back = issuer.authorize(dict(parse_qsl(urlsplit(url).query)))
    assert back.startswith("http://localhost/login/callback?")
    return cookies_of(response)[COOKIE].value, dict(parse_qsl(urlsplit(back).query))


async def test_code_of_the_issuer_starts_a_session(tmp_path: Path, issuer: Issuer) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        cookie, back = await start(house, issuer)
        response = await post(house, "finish", back, cookie=cookie)
        assert response.status_code == 200
        session = await response.get_json()
        assert set(session) == {"accessToken", "refreshToken", "expiresAt", "user"}
        assert session["user"]["email"] == EMAIL
        me = await house.ask("GET", "/auth/me", by=None, token=session["accessToken"])
        assert me.content["isAdmin"] is False, "signing in first makes no administrator"
        # The cookie is for one attempt.
        assert cookies_of(response)[COOKIE]["max-age"] == "0"
        assert (await post(house, "finish", back, cookie=cookie)).status_code == 401


async def test_cookie_of_an_attempt_is_narrow(tmp_path: Path, issuer: Issuer) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        cookie = cookies_of(await post(house, "start", {"kind": "oidc"}))[COOKIE]
        assert (cookie["path"], cookie["samesite"], cookie["httponly"]) == ("/api/auth/code", "Lax", True)
        assert cookie["max-age"] == str(ATTEMPT_S) == "600"
        assert not cookie["secure"]
        assert not cookie["domain"]
        assert CLIENT_SECRET not in cookie.value


async def test_response_for_another_browser_is_refused(tmp_path: Path, issuer: Issuer) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        cookie, back = await start(house, issuer)
        other, _ = await start(house, issuer)
        for told in ("", other, cookie[:-3]):
            response = await post(house, "finish", back, cookie=told)
            assert response.status_code == 400
            assert "Sign in again." in (await response.get_json())["error"]
        assert await house.store.read(all_users) == []


async def test_foreign_page_can_neither_begin_nor_complete(tmp_path: Path, issuer: Issuer) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        cookie, back = await start(house, issuer)
        evil = {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}
        assert (await post(house, "start", {"kind": "oidc"}, **evil)).status_code == 403
        assert (await post(house, "finish", back, cookie=cookie, **evil)).status_code == 403


async def test_rules_for_new_accounts_are_those_of_all_sign_ins(tmp_path: Path, issuer: Issuer) -> None:
    async with open_household(tmp_path, accounts=rules(issuer, open_to_all=False)) as house:
        cookie, back = await start(house, issuer)
        refused = await post(house, "finish", back, cookie=cookie)
        assert refused.status_code == 403
        assert "invite" in (await refused.get_json())["error"]
        await invited(house)
        cookie, back = await start(house, issuer)
        assert (await post(house, "finish", back, cookie=cookie)).status_code == 200
        issuer.told = {"sub": "eve", "email_verified": False}
        cookie, back = await start(house, issuer)
        assert (await post(house, "finish", back, cookie=cookie)).status_code == 403


@pytest.mark.parametrize(("path", "step"), [(DISCOVERY_PATH, "start"), (TOKEN_PATH, "finish")])
async def test_failing_issuer_is_a_503(tmp_path: Path, issuer: Issuer, path: str, step: str) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        cookie, body = "", {"kind": "oidc"}
        if step == "finish":
            cookie, body = await start(house, issuer)
        issuer.answers[path] = Answer({}, status=500)
        response = await post(house, step, body, cookie=cookie)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
        assert (await response.get_json())["error"].startswith("Home cannot be reached")


async def test_other_address_of_the_server_names_the_right_one(tmp_path: Path, issuer: Issuer) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        response = await post(house, "start", {"kind": "oidc"}, Host="192.168.1.2:3001")
        assert response.status_code == 400
        assert "http://localhost/login only" in (await response.get_json())["error"]
        assert "Set-Cookie" not in response.headers


@pytest.mark.parametrize(
    ("step", "body", "status"),
    [
        ("start", {"kind": "google"}, 404),
        ("start", {"kind": "x" * 33}, 400),
        ("start", {}, 400),
        ("finish", {"code": "c"}, 400),
        ("finish", {"code": "c", "state": ""}, 400),
        ("finish", {"code": 1, "state": "s"}, 400),
    ],
)
async def test_invalid_request_is_refused(
    tmp_path: Path, issuer: Issuer, step: str, body: Any, status: int
) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        assert (await post(house, step, body)).status_code == status


async def test_attempts_share_the_budget_of_all_sign_ins(tmp_path: Path, issuer: Issuer) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        wrong = {"email": EMAIL, "password": "wrong password"}
        assert await admitted(house, "/auth/code/finish", {"code": "c", "state": "s"}, but=400) >= 30
        assert (await post(house, "start", {"kind": "oidc"})).status_code == 429
        assert (await house.ask("POST", "/auth/password", wrong, by=None)).status == 429


async def test_info_names_the_providers(tmp_path: Path, issuer: Issuer) -> None:
    async with open_household(tmp_path, accounts=rules(issuer)) as house:
        info = await house.ask("GET", "/info", by=None)
        assert info.content["signIn"]["byCode"] == [{"kind": "oidc", "name": "Home"}]
        assert CLIENT_SECRET not in info.body.decode()
