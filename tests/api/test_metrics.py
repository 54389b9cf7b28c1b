import pytest
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.api.metrics import MetricsPage, bearer_matches
from brewos_relay.auth.caller import ProxyTrust
from support.household import Household

TOKEN = "metrics-token-0123456789"


@pytest.fixture
def measured(house: Household) -> QuartTrio:
    return create_app(
        relay=house.relay,
        store=house.store,
        keys=house.keys,
        proxy_trust=ProxyTrust(),
        accounts=AccountRules(),
        web_dist_path=None,
        metrics=MetricsPage(lambda: b"up 1\n", TOKEN),
    )


async def test_metrics_with_their_token(measured: QuartTrio) -> None:
    response = await measured.test_client().get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (response.status_code, await response.get_data()) == (200, b"up 1\n")
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer no", TOKEN, f"Basic {TOKEN}", "Bearer \udcff"]
)
async def test_nobody_else_sees_them(measured: QuartTrio, header: str | None) -> None:
    assert not bearer_matches(header, TOKEN)
    if header is None or header.isascii():
        headers = {} if header is None else {"Authorization": header}
        response = await measured.test_client().get("/metrics", headers=headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_without_a_token_there_are_none(app: QuartTrio) -> None:
    response = await app.test_client().get("/metrics", headers={"Authorization": "Bearer "})
    assert response.status_code == 404


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(MetricsPage(lambda: b"", TOKEN))
