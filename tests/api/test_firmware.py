from collections.abc import Sequence

from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.api.firmware import Asset, Release
from brewos_relay.auth.proxy_trust import ProxyTrust
from support.household import Household

RELEASE = Release(
    "v0.9.0",
    published_at="2026-02-01T00:00:00Z",
    body="Notes",
    assets=[Asset("a.bin", "2026-02-02T00:00:00Z")],
)


def app_with(house: Household, found: Sequence[Release] | None) -> QuartTrio:
    async def find_releases() -> Sequence[Release] | None:
        return found

    return create_app(
        relay=house.relay,
        store=house.store,
        keys=house.keys,
        proxy_trust=ProxyTrust(),
        accounts=AccountRules(),
        web_dist_path=None,
        find_releases=find_releases,
    )


async def test_releases_are_a_list_in_the_apps_format(house: Household) -> None:
    response = await app_with(house, [RELEASE]).test_client().get("/api/firmware/releases")
    assert (response.status_code, await response.get_json()) == (
        200,
        [
            {
                "tag_name": "v0.9.0",
                "prerelease": False,
                "published_at": "2026-02-01T00:00:00Z",
                "body": "Notes",
                "html_url": None,
                "assets": [{"name": "a.bin", "updated_at": "2026-02-02T00:00:00Z"}],
            }
        ],
    )


async def test_without_a_list_the_app_gets_a_503(house: Household) -> None:
    response = await app_with(house, None).test_client().get("/api/firmware/releases")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "60")


async def test_by_default_there_are_no_releases(house: Household) -> None:
    assert (await house.ask("GET", "/firmware/releases", by=None)).content == []
