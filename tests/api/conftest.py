"""Fixtures: the application, with a registry that has some machines."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.auth.proxy_trust import ProxyTrust
from support.household import Household, PlainRelay, new_databases, open_household
from support.postgresql import PostgreSQL
from support.quick_registries import quick_registries as quick_registries


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def each_registry(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test twice: with households in SQLite, and in PostgreSQL."""
    if request.param == "sqlite":
        yield
        return
    postgresql: PostgreSQL = request.getfixturevalue("postgresql")
    new_databases.append(postgresql.new_database)
    yield
    new_databases.pop()


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
