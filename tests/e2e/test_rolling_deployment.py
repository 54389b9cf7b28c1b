"""Replacing three instances under faithful machines and apps, behind a load balancer.

`nox -s rolling` does it with 500 machines that wait as long as in the field.
"""

from pathlib import Path
from typing import Final

import pytest
import trio

from storm.rolling import KINDS, Place, roll
from support import faithful_device
from support.postgresql import PostgreSQL
from support.redis_server import RedisServer

MACHINES: Final = 60
APPS: Final = 20
RECONNECT_S: Final = 4.0
"""These machines come back sooner than those in the field, so that a deployment in place meets them again."""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_rolling_deployment_destroys_no_key_and_disconnects_each_machine_seldom(
    kind: str,
    redis: RedisServer,
    postgresql: PostgreSQL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(faithful_device, "RECONNECT_S", RECONNECT_S)
    with postgresql.new_database() as url, trio.fail_after(110):
        place = Place(tmp_path, redis.url, url, drain_s=2.0)
        outcome = await roll(place, kind, machines=MACHINES, apps=APPS, back_within_s=30.0)
    print(outcome)
    assert not outcome.problems(kind)
