"""Fixtures: the application, with a registry that has some machines."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.auth.proxy_trust import ProxyTrust
from support.household import Household, PlainRelay, open_household


@pytest.fixture
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Household]:
    async with open_household(tmp_path_factory.mktemp("registry")) as house:
        yield house


@pytest.fixture
def relay(house: Household) -> PlainRelay:
    return house.relay


@pytest.fixture
def make_app(house: Household) -> Callable[[Path | None], QuartTrio]:
    def make(web_dist_path: Path | None) -> QuartTrio:
        return create_app(
            relay=house.relay,
            store=house.store,
            keys=house.keys,
            proxy_trust=ProxyTrust(),
            accounts=AccountRules(),
            web_dist_path=web_dist_path,
        )

    return make


@pytest.fixture
def app(house: Household) -> QuartTrio:
    return house.app
