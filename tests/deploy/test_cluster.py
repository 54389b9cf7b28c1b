"""The compose file of three instances: it fits the image, the settings, HAProxy and Redis."""

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from brewos_relay.doctor.cluster_checks import read_bus
from support.deployed_redis import check_broker, documented_rights, redis_with_configuration
from support.fronts import DEPLOY
from support.pages import read

from .test_images import DOCKERFILE, LONGEST_DRAIN_S, ROOT, seconds
from .test_platforms import check_settings

FOLDER = DEPLOY / "cluster"
COMPOSE = (FOLDER / "compose.yaml").read_text()
INSTANCES = ("relay1", "relay2", "relay3")
GIVEN = {
    "PUBLIC_URL": "https://relay.example.org",
    "JWT_SECRET": "5" * 64,
    "POSTGRES_PASSWORD": "a" * 64,
    "REDIS_PASSWORD": "b" * 64,
}


def with_variables(text: str) -> str:
    """Replace variables as compose does."""
    return re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: GIVEN[found[1]], text)


@pytest.fixture
def content() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(with_variables(COMPOSE))
    return content


def test_variables_are_those_of_the_example() -> None:
    example = (FOLDER / "cluster.env.example").read_text()
    names = re.findall(r"^([A-Z_]+)=", example, re.M)
    assert sorted(names) == sorted(GIVEN) == sorted(set(re.findall(r"\$\{(\w+)", COMPOSE)))
    assert not re.search(r"^(?!PUBLIC_URL)\w+=\S", example, re.M)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "relay.pem"} <= set(ignored)


def test_containers_have_few_privileges(content: dict[str, Any]) -> None:
    for name, service in content["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
        if name == "migrate":
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped"
            assert service["healthcheck"]["test"][0] == "CMD"


def test_only_the_balancer_is_reachable(content: dict[str, Any]) -> None:
    services, networks = content["services"], content["networks"]
    assert [name for name, service in services.items() if "ports" in service] == ["balancer"]
    assert networks["back"]["internal"] is True
    for name in ("redis", "postgres"):
        assert services[name]["networks"] == ["back"]
    assert services["balancer"]["networks"] == ["front"]
    [subnet] = networks["front"]["ipam"]["config"]
    for name in INSTANCES:
        assert services[name]["environment"]["BREWOS_RELAY_TRUSTED_PROXIES"] == subnet["subnet"]
    # The gateway, the balancer, the instances, and one for the migration.
    assert ipaddress.ip_network(subnet["subnet"]).num_addresses - 3 >= len(INSTANCES) + 2


def test_balancer_gets_no_secret_but_its_certificate(content: dict[str, Any]) -> None:
    assert "environment" not in content["services"]["balancer"]
    assert "env_file" not in str(content)


def test_instances_have_valid_settings(content: dict[str, Any]) -> None:
    found = [check_settings(content["services"][name]["environment"]) for name in INSTANCES]
    assert [settings.instance for settings in found] == list(INSTANCES)
    assert len({(settings.bus, settings.database_url, settings.jwt_secret) for settings in found}) == 1
    assert found[0].database_pool * len(INSTANCES) * 2 < 97  # also while each has a replacement
    assert found[0].port == 3001
    check_settings(content["services"]["migrate"]["environment"])


def test_instances_have_time_to_drain(content: dict[str, Any]) -> None:
    for name in INSTANCES:
        assert seconds(content["services"][name]["stop_grace_period"]) > LONGEST_DRAIN_S


def test_image_has_the_drivers(content: dict[str, Any]) -> None:
    build = content["services"]["migrate"]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert build["args"] == {"ALSO": "psycopg[binary] hiredis"}
    assert 'ARG ALSO=""' in DOCKERFILE
    assert {content["services"][name]["image"] for name in (*INSTANCES, "migrate")} == {
        "brewos-relay:cluster"
    }


def test_instances_start_after_what_they_need(content: dict[str, Any]) -> None:
    for name in INSTANCES:
        assert content["services"][name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_healthy"},
            "postgres": {"condition": "service_healthy"},
        }
    assert set(content["services"]["balancer"]["depends_on"]) == set(INSTANCES)


def test_mounted_files_exist(content: dict[str, Any]) -> None:
    for service in content["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            # The user makes the certificate.
            assert source in content["volumes"] or source == "./relay.pem" or (FOLDER / source).exists()


def test_other_images_have_a_tag(content: dict[str, Any]) -> None:
    for name in ("balancer", "redis", "postgres"):
        assert re.fullmatch(r"\w+:\d+(\.\d+)?-alpine", content["services"][name]["image"])


def test_balancer_knows_the_instances(content: dict[str, Any]) -> None:
    text = (FOLDER / "haproxy.cfg").read_text()
    servers = re.findall(r"^    server (\w+) (\w+):(\d+)$", text, re.M)
    assert servers == [(name, name, "3001") for name in INSTANCES]
    # A container resolves the names of others with its engine's server.
    assert "nameserver engine 127.0.0.11:53" in text
    health = "http://" + "".join(re.findall(r"bind (127\.0\.0\.1:\d+)\n    monitor-uri (/\w+)", text)[0])
    assert content["services"]["balancer"]["healthcheck"]["test"][-1] == health


async def test_redis_has_the_rights_that_the_relay_needs(content: dict[str, Any], tmp_path: Path) -> None:
    configuration = content["configs"]["redis"]["content"]
    assert documented_rights() in configuration
    url = content["services"]["relay1"]["environment"]["BREWOS_RELAY_BUS"]
    with redis_with_configuration(configuration.replace("dir /data", f"dir {tmp_path}"), tmp_path) as port:
        await check_broker(url.replace("@redis:6379", f"@127.0.0.1:{port}"))


def test_doctor_finds_no_fault_in_the_configuration_of_redis(content: dict[str, Any], tmp_path: Path) -> None:
    configuration = content["configs"]["redis"]["content"].replace("dir /data", f"dir {tmp_path}")
    url = content["services"]["relay1"]["environment"]["BREWOS_RELAY_BUS"]
    with redis_with_configuration(configuration, tmp_path) as port:
        # `cluster status` needs no further rights; doctor reports that it may not read the configuration.
        facts = read_bus(url.replace("@redis:6379", f"@127.0.0.1:{port}")).facts
        assert (facts.evicts, facts.memory_is_readable, facts.pubsub_limits) == (None, False, None)
    everything = configuration.replace("user default off", "user default on nopass ~* &* +@all")
    with redis_with_configuration(everything, tmp_path) as port:
        facts = read_bus(f"redis://127.0.0.1:{port}/0").facts
        assert (facts.evicts, facts.memory_is_readable, facts.has_small_buffers) == (None, True, False)


def test_page_shows_the_lines_of_the_files(content: dict[str, Any]) -> None:
    page = read("how-to/run-many-instances.md")
    balancer = (FOLDER / "haproxy.cfg").read_text()
    configuration = content["configs"]["redis"]["content"]
    of_balancer, of_redis = (
        next(block for block in re.findall(r"^```text\n(.*?)^```$", page, re.M | re.S) if word in block)
        for word in ("balance hash", "maxmemory-policy")
    )
    lines = [line for line in of_balancer.splitlines() if line != "…"]
    assert lines == [line for line in balancer.splitlines() if line in lines]
    assert of_redis.splitlines() == [
        line for line in configuration.splitlines() if line in of_redis.splitlines()
    ]
    # What the chart's Redis has as well.
    chart = (DEPLOY / "helm" / "brewos-relay" / "templates" / "redis.yaml").read_text()
    for line in of_redis.splitlines():
        assert line.replace("256mb", "{{ .Values.redis.maxMemory }}") in chart
