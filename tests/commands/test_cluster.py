import json
from pathlib import Path

import pytest

from support.process import machine_id, run_command, serve_instances
from support.redis_server import RedisServer

from .conftest import Run


def keys_of(redis: RedisServer) -> set[bytes]:
    return set(redis.run("KEYS", "*").splitlines())


async def test_status_lists_the_instances_with_their_figures(
    tmp_path: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brewos_relay.cluster.member.RENEW_EVERY_S", 0.1)
    async with serve_instances(tmp_path, redis.url, within_s=30) as (one, two):
        await one.device(machine_id(1))
        await two.client(machine_id(1))
        before = keys_of(redis)
        known = (0, 0)
        while known != (1, 1):  # until both have renewed their leases, and with that their descriptions
            ran = await run_command(tmp_path, "cluster", "status", "--json", BREWOS_RELAY_BUS=redis.url)
            assert ran.returncode == 0, ran
            content = json.loads(ran.stdout)
            assert content["problems"] == []
            known = (content["devices"], content["clients"])
        assert content["bus"]["server"].startswith("Redis ")
        first, second = content["instances"]
        assert [first["name"][:4], second["name"][:4]] == ["one-", "two-"]
        for each in (first, second):
            assert each["state"] == "running"
            assert each["version"]
            assert each["uptimeS"] < 30
            assert 0 <= each["leaseAgeS"] < 15
            assert 0 < each["answerMs"] < 2000
            assert set(each["perSecond"]) == {"fromDevices", "fromClients", "toClients", "commands"}
        ran = await run_command(tmp_path, "cluster", "status", BREWOS_RELAY_BUS=redis.url)
        lines = ran.stdout.decode().splitlines()
        assert ran.returncode == 0, ran
        assert lines[0].startswith(f"{redis.url}, Redis ")
        assert lines[2].split()[:4] == ["INSTANCE", "STATE", "VERSION", "HOST"]
        assert lines[3].split()[:2] == [first["name"], "running"]
        assert "\x1b" not in ran.stdout.decode()
        assert keys_of(redis) == before, "an observer leaves nothing behind"


async def test_status_fails_for_instances_that_do_not_fit_together(
    tmp_path: Path, redis: RedisServer
) -> None:
    other = {"jwt_secret": "another-secret-" + "x" * 32, "data_dir": tmp_path / "other"}
    async with serve_instances(tmp_path, redis.url, other, within_s=30):
        ran = await run_command(tmp_path, "cluster", "status", "--json", BREWOS_RELAY_BUS=redis.url)
        assert ran.returncode == 1
        assert [each["kind"] for each in json.loads(ran.stdout)["problems"]] == ["keys", "registries"]
        ran = await run_command(tmp_path, "cluster", "status", BREWOS_RELAY_BUS=redis.url)
        assert ran.returncode == 1
        assert b"problem: instances have different keys for tokens" in ran.stdout


async def test_status_reports_an_instance_that_does_not_answer(tmp_path: Path, redis: RedisServer) -> None:
    redis.run("ZADD", "brewos:instances", "99999999999999999", "dead-1")
    redis.run("SET", "brewos:alive:dead-1", "{}")
    ran = await run_command(tmp_path, "cluster", "status", BREWOS_RELAY_BUS=redis.url)
    assert ran.returncode == 1
    assert b"problem: no answer from dead-1" in ran.stdout
    assert ran.stdout.splitlines()[3].split()[:2] == [b"dead-1", b"silent"]


def test_status_without_a_bus_says_what_to_set(run: Run) -> None:
    ran = run("cluster", "status")
    assert ran.code == 2
    assert "BREWOS_RELAY_BUS is not set" in ran.err


def test_status_without_redis_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREWOS_RELAY_BUS", "redis://user:hunter22@127.0.0.1:1")
    ran = run("cluster", "status")
    assert ran.code == 1
    assert "the bus is unavailable: cannot connect to redis://user@127.0.0.1:1" in ran.err
    assert "hunter22" not in ran.out + ran.err
