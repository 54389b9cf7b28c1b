import logging
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay.errors import SettingsError
from brewos_relay.instances import Description, Rates
from brewos_relay.server import cluster
from brewos_relay.server.cluster import Comparison, describe_settings, fingerprint
from brewos_relay.settings import Settings
from support.http_client import ask
from support.process import SECRET, serve_here, serve_instances
from support.redis_server import RedisServer


def problems_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage().split(":")[0]
        for record in caplog.records
        if record.name == cluster.__name__ and record.levelno == logging.WARNING
    ]


async def test_a_server_warns_when_it_joins_instances_with_other_keys_and_another_registry(
    tmp_path: Path, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    other = {"jwt_secret": SECRET[::-1], "data_dir": tmp_path / "other"}
    async with serve_instances(tmp_path, redis.url, other):
        assert problems_in(caplog) == [
            "instances have different keys for tokens",
            "instances use different registries",
        ]
    assert SECRET not in caplog.text


async def test_a_server_does_not_warn_of_instances_like_itself(
    tmp_path: Path, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_instances(tmp_path, redis.url, {}, {}):
        assert problems_in(caplog) == []


class _View:
    def __init__(self, *keys: str) -> None:
        self.keys = keys

    async def instances(self) -> dict[str, Description]:
        await trio.lowlevel.checkpoint()
        return {f"i{number}": Description(keys=keys) for number, keys in enumerate(self.keys)}


async def test_each_problem_is_logged_once_until_it_has_gone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    view = _View("a", "b")
    comparison = Comparison(view, "i0")  # type: ignore[arg-type]
    for keys, count in ((("a", "b"), 1), (("a", "b", "c"), 1), (("a", "a"), 1), (("a", "b"), 2)):
        view.keys = keys
        with trio.move_on_after(40):
            await comparison.run()
        assert len(problems_in(caplog)) == count


@pytest.mark.parametrize(("sqlite", "boot", "refused"), [(False, "other", True), (True, None, False)])
async def test_a_registry_in_a_file_is_not_shared_by_two_hosts(
    tmp_path: Path, redis: RedisServer, sqlite: bool, boot: str | None, refused: bool
) -> None:
    other = Description(host="far", boot=boot or cluster._boot_id(), sqlite=sqlite)
    broker = cluster.open_broker(redis.url)
    async with broker.connect("far", lambda _message: None) as connection:
        await connection.renew(msgspec.json.encode(other))
        if not refused:
            async with serve_here(tmp_path, settings={"bus": redis.url}):
                return
        with pytest.raises(ExceptionGroup) as raised:
            async with serve_here(tmp_path, settings={"bus": redis.url}):
                pytest.fail("it started")
        [problem] = leaves(raised.value)
        assert isinstance(problem, SettingsError)
        assert "shared with the instance far on another host" in str(problem)
        assert "BREWOS_RELAY_DATABASE_URL" in str(problem)


def leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    """Return the errors in a group, also in groups of it."""
    found: list[BaseException] = []
    for each in group.exceptions:
        found += leaves(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found


async def test_rates_are_over_some_seconds(autojump_clock: MockClock) -> None:
    counts = (0, 0, 0, 0)
    meter = cluster._RateMeter(lambda: counts)
    counts = (10, 4, 100, 1)
    await trio.sleep(1)
    assert meter.read() == Rates()
    await trio.sleep(3)
    assert meter.read() == Rates(2.5, 1.0, 25.0, 0.2)
    assert meter.read() == Rates(2.5, 1.0, 25.0, 0.2)
    await trio.sleep(4)
    assert meter.read() == Rates()


def test_a_description_tells_neither_keys_nor_the_place_of_the_registry(tmp_path: Path) -> None:
    settings = Settings(jwt_secret=SECRET, data_dir=tmp_path)
    described = describe_settings(settings, "f1ng3r")
    assert described.registry == "f1ng3r"
    assert described.sqlite is True
    assert described.keys == fingerprint(settings)
    assert SECRET not in str(described)
    assert str(tmp_path) not in str(described)


async def test_metrics_tell_differences_and_attempts_that_were_counted_alone(
    tmp_path: Path, redis: RedisServer
) -> None:
    token = "metrics-" + "m" * 32
    other = {"jwt_secret": SECRET[::-1]}
    settings = {"metrics_token": token}
    async with serve_instances(tmp_path, redis.url, other, settings=settings) as (_, two):

        async def lines() -> list[str]:
            text = (await ask(two, "GET", "/metrics", token=token)).response.body.decode()
            return [
                re.sub(r'instance="two-[0-9a-f]+"', "two", line)
                for line in text.splitlines()
                if line.startswith(("brewos_relay_bus", "brewos_relay_cluster"))
            ]

        assert await lines() == [
            "brewos_relay_bus_connected{two} 1.0",
            "brewos_relay_bus_reconnects_total{two} 0.0",
            "brewos_relay_bus_unreadable_total{two} 0.0",
            "brewos_relay_bus_unshared_attempts_total{two} 0.0",
            'brewos_relay_cluster_problem{two,problem="versions"} 0.0',
            'brewos_relay_cluster_problem{two,problem="keys"} 1.0',
            'brewos_relay_cluster_problem{two,problem="registries"} 0.0',
            'brewos_relay_cluster_problem{two,problem="hosts"} 0.0',
        ]
        redis.kill()
        with trio.fail_after(5):
            while "brewos_relay_bus_connected{two} 1.0" in await lines():
                pass
        told = await ask(two, "POST", "/api/auth/invite", {"token": "t" * 43})
        assert told.status == 401
        assert "brewos_relay_bus_unshared_attempts_total{two} 1.0" in await lines()
