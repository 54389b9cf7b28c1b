from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from quart import Response
from quart.testing.utils import sentinel
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.api.browser_security import SecurityHeaders
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.registry.store import open_store
from brewos_relay.telemetry.measurements import RequestCounters
from support.household import SECRET, Household, PlainRelay, open_household


def policy_of(response: Response) -> dict[str, list[str]]:
    """Parse a Content-Security-Policy into the sources of each directive."""
    rules = [rule.split() for rule in response.headers["Content-Security-Policy"].split(";")]
    assert len({rule[0] for rule in rules}) == len(rules)
    return {rule[0]: rule[1:] for rule in rules}


def app_policy(*, google: bool = False, facebook: bool = False) -> tuple[Response, dict[str, list[str]]]:
    rules = SecurityHeaders(google=google, facebook=facebook)
    response = rules.complete(Response(""), part="web", secure=True, is_api=False)
    return response, policy_of(response)


@pytest.mark.parametrize(
    "path", ["/", "/login", "/console/style.css", "/nothing", "/api/info", "/api/nothing"]
)
async def test_every_answer_has_security_headers(house: Household, path: str) -> None:
    response = await house.app.test_client().get(path)
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "geolocation=()" in response.headers["Permissions-Policy"]
    assert policy_of(response)["default-src"] == ["'none'"]
    assert policy_of(response)["frame-ancestors"] == ["'none'"]


@pytest.mark.parametrize(("headers", "secure"), [({}, False), ({"X-Forwarded-Proto": "https"}, False)])
async def test_plain_http_gets_no_hsts(house: Household, headers: dict[str, str], secure: bool) -> None:
    response = await house.app.test_client().get("/", headers=headers)
    assert ("Strict-Transport-Security" in response.headers) is secure


async def test_hsts_over_tls_does_not_cover_subdomains(tmp_path: Path) -> None:
    async with open_household(tmp_path, proxy_trust=ProxyTrust()) as house:
        response = await house.app.test_client().get("/", scheme="https")
    assert response.headers["Strict-Transport-Security"] == "max-age=15552000"


def test_self_signed_certificate_gets_no_hsts() -> None:
    rules = SecurityHeaders(google=False, facebook=False, hsts=False)
    response = rules.complete(Response(""), part="console", secure=True, is_api=False)
    assert "Strict-Transport-Security" not in response.headers


async def test_console_pages_run_only_their_own_scripts(house: Household) -> None:
    response = await house.app.test_client().get("/login")
    policy = policy_of(response)
    assert policy["script-src"] == ["'self'"]
    assert policy["style-src"] == ["'self'"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["form-action"] == ["'none'"]
    assert policy["base-uri"] == ["'none'"]
    assert policy["require-trusted-types-for"] == ["'script'"]


def test_policy_of_a_web_app_allows_only_its_sources() -> None:
    response, policy = app_policy()
    assert policy["default-src"] == ["'self'"]
    assert policy["script-src"] == ["'self'"]
    assert policy["style-src"] == ["'self'", "'unsafe-inline'", "https://fonts.googleapis.com"]
    assert {"'self'", "data:", "blob:"} <= set(policy["img-src"])
    assert {"'self'", "wss:"} <= set(policy["connect-src"])
    assert policy["frame-src"] == ["'none'"]
    assert "accounts.google.com" not in response.headers["Content-Security-Policy"]
    assert "facebook" not in response.headers["Content-Security-Policy"]
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_policy_allows_google_only_with_google_sign_in() -> None:
    response, policy = app_policy(google=True)
    for directive in ("script-src", "style-src", "connect-src", "frame-src"):
        assert "https://accounts.google.com" in policy[directive]
    assert "https://*.googleusercontent.com" in policy["img-src"]
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin-allow-popups"
    # Google needs the Referer of the page to sign a user in.
    assert response.headers["Referrer-Policy"] == "strict-origin-when-cross-origin"
    assert "facebook" not in response.headers["Content-Security-Policy"]


def test_policy_allows_facebook_only_with_facebook_sign_in() -> None:
    response, policy = app_policy(facebook=True)
    assert "https://connect.facebook.net" in policy["script-src"]
    assert "https://*.facebook.com" in policy["frame-src"]
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin-allow-popups"
    assert "accounts.google.com" not in response.headers["Content-Security-Policy"]


async def test_google_client_id_makes_policy_allow_google(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / "index.html").write_text("<!doctype html>")
    accounts = AccountRules(google_client_id="id-of-ours")
    async with open_household(tmp_path, accounts=accounts, web_dist_path=dist) as house:
        app = await house.app.test_client().get("/")
        own = await house.app.test_client().get("/login")
    assert "https://accounts.google.com" in policy_of(app)["script-src"]
    assert policy_of(own)["script-src"] == ["'self'"]


OWN = "https://relay.example"
PUBLIC = "https://public.example"
CONFIGURED = "https://app.example"
FOREIGN = "https://evil.example"


@pytest.fixture
def counters() -> RequestCounters:
    return RequestCounters()


@pytest.fixture
async def app(tmp_path: Path, counters: RequestCounters) -> AsyncIterator[QuartTrio]:
    async with open_store(f"sqlite:///{tmp_path / 'registry.db'}") as store:
        yield create_app(
            relay=PlainRelay(),
            store=store,
            keys=KeyRing([SECRET]),
            proxy_trust=ProxyTrust(public_url=PUBLIC),
            accounts=AccountRules(),
            web_dist_path=None,
            allowed_origins=[CONFIGURED],
            counters=counters,
        )


async def send(
    app: QuartTrio,
    *,
    site: str | None = None,
    origin: str | None = None,
    method: str = "POST",
    path: str = "/api/auth/refresh",
    content_type: str = "application/json",
    scheme: str = "https",
) -> Response:
    """Send a request that would get 401 to a server with the host name relay.example."""
    headers = {"Host": "relay.example", "Content-Type": content_type}
    if site is not None:
        headers["Sec-Fetch-Site"] = site
    if origin is not None:
        headers["Origin"] = origin
    with trio.fail_after(10):
        response = await app.test_client().open(
            path, method=method, headers=headers, data=b'{"refreshToken":"x"}', scheme=scheme, json=sentinel
        )
    assert isinstance(response, Response)
    return response


@pytest.mark.parametrize(
    ("site", "origin"),
    [
        (None, None),
        ("same-origin", OWN),
        ("same-origin", None),
        ("same-origin", "https://behind-a-proxy.example"),
        ("none", None),
        (None, OWN),
        (None, PUBLIC),
        (None, CONFIGURED),
        ("cross-site", CONFIGURED),
        ("same-site", CONFIGURED),
        ("cross-site", PUBLIC),
    ],
)
async def test_requests_of_programs_own_pages_and_configured_pages_pass(
    app: QuartTrio, site: str | None, origin: str | None
) -> None:
    assert (await send(app, site=site, origin=origin)).status_code == 401


@pytest.mark.parametrize(
    ("site", "origin"),
    [
        ("cross-site", FOREIGN),
        ("cross-site", None),
        ("cross-site", "null"),
        ("same-site", "https://other.relay.example"),
        ("same-site", "https://relay.example:8443"),
        ("same-site", None),
        ("cross-site", "http://relay.example"),
        ("something-new", None),
        ("", FOREIGN),
        (None, FOREIGN),
        (None, "null"),
        (None, ""),
        (None, "http://relay.example"),
        (None, f"{FOREIGN}/{CONFIGURED}"),
    ],
)
async def test_requests_of_foreign_pages_are_refused(
    app: QuartTrio, counters: RequestCounters, site: str | None, origin: str | None
) -> None:
    response = await send(app, site=site, origin=origin)
    assert response.status_code == 403
    assert "another site" in (await response.get_json())["error"]
    assert counters.refused == {"origin": 1}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_no_route_accepts_changes_from_foreign_pages(app: QuartTrio, method: str) -> None:
    for path in (
        "/api/devices/register-claim",
        "/api/devices/claim",
        "/api/devices/BRW-0000001A/share",
        "/api/auth/invite",
        "/api/auth/logout",
        "/api/me/password",
        "/api/admin/invites",
        "/api/logs/enable",
        "/api/nope",
        "/",
    ):
        for content_type in ("text/plain", "application/json"):
            response = await send(
                app, site="cross-site", origin=FOREIGN, method=method, path=path, content_type=content_type
            )
            assert response.status_code == 403, path


@pytest.mark.parametrize("path", ["/api/info", "/", "/login", "/pair?id=BRW-0000001A&token=x"])
async def test_links_on_foreign_pages_lead_here(app: QuartTrio, path: str) -> None:
    assert (await send(app, site="cross-site", method="GET", path=path)).status_code == 200


async def test_a_machine_and_its_notifications_are_exempt(app: QuartTrio) -> None:
    path = "/api/push/notify"
    assert (await send(app, path=path, content_type="text/plain")).status_code == 404
    assert (await send(app, path=path, site="cross-site", origin=FOREIGN)).status_code == 404


async def test_no_answer_lets_a_foreign_page_read_it(app: QuartTrio) -> None:
    for method in ("OPTIONS", "POST", "GET"):
        response = await send(app, site="cross-site", origin=CONFIGURED, method=method)
        assert not [name for name, _ in response.headers.items() if name.startswith("Access-Control")]
