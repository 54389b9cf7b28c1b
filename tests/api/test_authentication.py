import ipaddress
from pathlib import Path
from typing import Any

import pytest

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.request_limits import RequestLimit, RequestLimits
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.errors import IdentityUnavailable, RegistryError
from support.household import Household, open_household
from support.sign_ins import PlainVerifier

PROXY = "10.0.0.2"


async def status_of(house: Household, address: str, forwarded: str | None = None, **more: Any) -> int:
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    response = await house.app.test_client().get(
        "/api/mode", headers=headers, scope_base={"client": (address, 4711)}, **more
    )
    return response.status_code


def one_request_each() -> RequestLimits:
    request_limits = RequestLimits()
    request_limits.requests = RequestLimit("requests", burst=1, each_minute=0.001)
    return request_limits


async def test_requests_are_counted_by_address(tmp_path: Path) -> None:
    async with open_household(tmp_path, request_limits=one_request_each(), proxy_trust=ProxyTrust()) as house:
        assert await status_of(house, "192.0.2.1") == 200
        assert await status_of(house, "192.0.2.1") == 429
        assert await status_of(house, "192.0.2.2") == 200
        # A client that is no trusted proxy can forge the header.
        assert await status_of(house, "192.0.2.1", "192.0.2.3") == 429


async def test_requests_behind_a_trusted_proxy_are_counted_by_forwarded_address(tmp_path: Path) -> None:
    proxy_trust = ProxyTrust([ipaddress.ip_network("10.0.0.0/8")])
    async with open_household(tmp_path, request_limits=one_request_each(), proxy_trust=proxy_trust) as house:
        assert await status_of(house, PROXY, "192.0.2.1") == 200
        assert await status_of(house, PROXY, "192.0.2.2") == 200
        assert await status_of(house, PROXY, "192.0.2.99, 192.0.2.1") == 429


@pytest.mark.parametrize("path", ["/api/health", "/", "/login"])
async def test_health_and_pages_are_not_counted(tmp_path: Path, path: str) -> None:
    async with open_household(tmp_path, request_limits=one_request_each()) as house:
        for _ in range(3):
            assert (await house.app.test_client().get(path)).status_code == 200


async def test_registrations_have_their_own_limits(tmp_path: Path) -> None:
    async with open_household(tmp_path, request_limits=one_request_each()) as house:
        for _ in range(3):
            assert (await house.app.test_client().post("/api/devices/register-claim")).status_code == 415


async def test_refusal_is_json_with_retry_after(tmp_path: Path) -> None:
    async with open_household(tmp_path, request_limits=one_request_each()) as house:
        await house.ask("GET", "/mode", by=None)
        answer = await house.ask("GET", "/mode", by=None)
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) > 0


async def test_a_proxy_tells_whether_tls_was_used(tmp_path: Path) -> None:
    proxy_trust = ProxyTrust([ipaddress.ip_network("10.0.0.0/8")])
    async with open_household(tmp_path, proxy_trust=proxy_trust) as house:
        for address, secure in ((PROXY, True), ("192.0.2.1", False)):
            response = await house.app.test_client().get(
                "/", headers={"X-Forwarded-Proto": "https"}, scope_base={"client": (address, 1)}
            )
            assert ("Strict-Transport-Security" in response.headers) is secure


async def test_log_lines_about_failed_requests_are_limited_by_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone can send such requests, and a failing server must not fill its disk with log lines."""
    lines = LogLineLimits("failed requests", rate_per_s=1.0, burst=100.0, each_at_once=2.0)
    rules = AccountRules(verifiers={"google": PlainVerifier(good=IdentityUnavailable("no answer"))})
    async with open_household(tmp_path, accounts=rules, lines=lines) as house:

        async def fail(*_args: object, **_more: object) -> None:
            raise RegistryError("locked")

        monkeypatch.setattr(house.store, "write_anonymous", fail)
        for _ in range(5):
            sent = {"/auth/google": {"credential": "good"}, "/auth/refresh": {"refreshToken": "x" * 43}}
            for path, body in sent.items():
                assert (await house.ask("POST", path, body, by=None)).status == 503
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == ["signing in with Google failed", "the registry failed a request"] * 2
