from typing import get_args

from brewos_relay.core.host import Happening, Host
from brewos_relay.core.relay import open_relay
from brewos_relay.registry.records import ActivityKind


def test_what_happens_is_something_that_the_registry_keeps() -> None:
    assert set(get_args(Happening)) < set(get_args(ActivityKind))


async def test_a_relay_is_what_a_session_asks_for() -> None:
    async with open_relay() as relay:
        host: Host = relay
        host.note("BRW-00000001", "online", None, {})
        host.device_seen("BRW-00000001", 1)
        assert host.attached == set()
        assert len(host.crowds) == 0
