from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from quart import Response
from quart.testing.utils import sentinel
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.auth.caller import ProxyTrust
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.registry.store import open_store
from brewos_relay.telemetry.requests import RequestCounters
from support.household import SECRET, PlainRelay

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
    """Send a request that would be answered with 401, to a server that is called relay.example."""
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
async def test_requests_of_programs_of_own_and_of_configured_pages_pass(
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
@pytest.mark.parametrize(
    "path",
    [
        *("/api/devices/register-claim", "/api/devices/claim", "/api/devices/BRW-0000001A/share"),
        *(
            "/api/auth/invite",
            "/api/auth/logout",
            "/api/me/password",
            "/api/admin/invites",
            "/api/logs/enable",
        ),
        *("/api/nope", "/"),
    ],
)
async def test_no_route_takes_changes_from_foreign_pages(app: QuartTrio, method: str, path: str) -> None:
    for content_type in ("text/plain", "application/json"):
        response = await send(
            app, site="cross-site", origin=FOREIGN, method=method, path=path, content_type=content_type
        )
        assert response.status_code == 403


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
