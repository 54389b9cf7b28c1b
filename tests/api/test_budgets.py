"""Which limit each request counts against, inside and outside /api."""

from pathlib import Path

import pytest
import trio

from brewos_relay.api.request_limits import RequestLimit, RequestLimits
from support.household import Household, open_household


def few(burst: int = 2) -> RequestLimits:
    request_limits = RequestLimits()
    request_limits.requests = RequestLimit("requests", burst=burst, each_minute=0.001, by_network=True)
    request_limits.pages = RequestLimit("requests for pages", burst=burst, each_minute=0.001, by_network=True)
    request_limits.health = RequestLimit("health checks", burst=burst, each_minute=0.001, by_network=True)
    return request_limits


async def statuses(house: Household, *paths: str) -> list[int]:
    with trio.fail_after(10):
        return [(await house.app.test_client().get(path)).status_code for path in paths]


PARTS = {
    "pages": ("/", "/login", "/pair"),
    "health": ("/livez", "/readyz", "/api/health"),
    "api": ("/api/info", "/api/mode", "/api/nope"),
}


@pytest.mark.parametrize("flooded", PARTS)
async def test_pages_health_and_api_have_separate_budgets(tmp_path: Path, flooded: str) -> None:
    async with open_household(tmp_path, request_limits=few()) as house:
        found = await statuses(house, *PARTS[flooded])
        assert 429 not in found[:2]
        assert found[2] == 429
        for other, paths in PARTS.items():
            if other != flooded:
                assert 429 not in await statuses(house, *paths[:2])


async def test_refused_page_request_is_plain_text(tmp_path: Path) -> None:
    async with open_household(tmp_path, request_limits=few(burst=1)) as house:
        await statuses(house, "/login")
        with trio.fail_after(10):
            response = await house.app.test_client().get("/login")
            text = await response.get_data(as_text=True)
        assert response.content_type == "text/plain; charset=utf-8"
        assert text.startswith("Too many requests for pages. Try again in")
        assert int(response.headers["Retry-After"]) > 0


async def test_a_registration_is_not_counted_as_a_request(tmp_path: Path) -> None:
    async with open_household(tmp_path, request_limits=few(burst=1)) as house:
        await statuses(house, "/api/info")
        for _ in range(3):
            answer = await house.ask("POST", "/devices/register-claim", {}, by=None)
            assert answer.status == 400
