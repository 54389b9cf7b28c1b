"""An application over fakes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from quart_trio import QuartTrio

from brewos_relay.api.app import create_app
from support.api_fakes import FakeRelay, FakeStore, FakeTokens


@pytest.fixture
def relay() -> FakeRelay:
    return FakeRelay()


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def tokens() -> FakeTokens:
    return FakeTokens()


@pytest.fixture
def make_app(relay: FakeRelay, store: FakeStore, tokens: FakeTokens) -> Callable[[Path | None], QuartTrio]:
    def make(web_dist_path: Path | None) -> QuartTrio:
        return create_app(relay=relay, store=store, tokens=tokens, web_dist_path=web_dist_path)

    return make


@pytest.fixture
def app(make_app: Callable[[Path | None], QuartTrio]) -> QuartTrio:
    return make_app(None)
