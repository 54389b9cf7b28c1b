"""Checks of the image and its configuration that need no container engine."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from brewos_relay.settings.server_limits import ServerLimits
from support.dockerfile import is_ignored, lint, read_instructions
from support.fronts import DEPLOY
from support.ports import free_port
from support.process import serve_process

ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text()
LONGEST_DRAIN_S = ServerLimits().longest_drain_s + 5
"""How long a shutdown may take: the drain, and a few seconds for HTTP requests and the registry."""


def test_dockerfile_follows_the_rules() -> None:
    assert lint(DOCKERFILE, ROOT, IGNORED) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("python:3.13-slim-trixie AS", "python AS", "no fixed tag"),
        ("python:3.13-slim-trixie AS", "python:latest AS", "no fixed tag"),
        ("COPY src", "ADD https://example.org/src", "ADD fetches"),
        ("COPY src", "COPY sources", "no such file"),
        ("COPY src", "COPY docs", "left out by .dockerignore"),
        ("--from=build /opt", "--from=built /opt", "no such stage"),
        ("USER 10001:10001", "USER root", "no USER"),
        ("USER 10001:10001", "", "no USER"),
        ("USER 10001", "RUN apt-get install --no-install-recommends gcc\nUSER 10001", "build tools"),
        ("USER 10001", "RUN apt-get install nano\nUSER 10001", "recommended packages"),
        ("USER 10001", "RUN curl https://example.org | sh\nUSER 10001", "without a check"),
        ("USER 10001", "ENV JWT_SECRET=x\nUSER 10001", "secrets stay"),
        ("VOLUME /data", "", "no VOLUME"),
        ('CMD ["python"', 'CMD python #"', "HEALTHCHECK starts a shell"),
        ('CMD ["serve"]', "CMD serve", "CMD starts a shell"),
        ("RUN install -d -o 10001", "RUN install -d -o 0", "must belong to its user alone"),
        ("-m 0700 /data", "/data", "must belong to its user alone"),
        ("--no-cache-dir ", "", "leaves its cache"),
    ],
)
def test_broken_rule_is_found(old: str, new: str, problem: str) -> None:
    assert old in DOCKERFILE
    problems = lint(DOCKERFILE.replace(old, new), ROOT, IGNORED)
    assert [found for found in problems if problem in found], problems


def test_missing_healthcheck_is_found() -> None:
    without = re.sub(r"^HEALTHCHECK.*?\]\n", "", DOCKERFILE, flags=re.M | re.S)
    problem = "the last stage has no HEALTHCHECK: a server that hangs goes unnoticed"
    assert lint(without, ROOT, IGNORED) == [problem]


@pytest.mark.parametrize(
    "name", [".env", ".git/config", "data/brewos-relay.db", "deploy/relay.env", "src/a.pyc"]
)
def test_private_files_stay_out_of_the_image(name: str) -> None:
    assert is_ignored(name, IGNORED)


def test_build_context_has_the_needed_files() -> None:
    copied = {
        word
        for step in read_instructions(DOCKERFILE)
        if step.name == "COPY"
        for word in step.rest.split()[:-1]
    }
    project = (ROOT / "pyproject.toml").read_text()
    for name in re.findall(r'^(?:readme = |license-files = \[)"([^"]+)"', project, re.M):
        assert name in copied


async def test_health_checks_request_existing_endpoints(tmp_path: Path, services: dict[str, Any]) -> None:
    [check] = [step.rest for step in read_instructions(DOCKERFILE) if step.name == "HEALTHCHECK"]
    of_image = json.loads(check[check.index("[") :])
    of_compose = services["relay"]["healthcheck"]["test"][1:]

    async def outcomes(port: int) -> list[int]:
        return [
            (
                await trio.run_process(
                    [sys.executable, *(word.replace(":3001", f":{port}") for word in command[1:])],
                    env={**os.environ, "PORT": str(port)},
                    capture_stderr=True,
                    check=False,
                )
            ).returncode
            for command in (of_image, of_compose)
        ]

    with trio.fail_after(60):
        async with serve_process(tmp_path) as server:
            assert await outcomes(server.address[1]) == [0, 0]
        assert await outcomes(free_port()) == [1, 1]


# Compose


@pytest.fixture
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return services


def test_containers_have_few_privileges(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
        assert not service.get("privileged")
    assert "cap_add" not in services["relay"]
    assert services["caddy"]["cap_add"] == ["NET_BIND_SERVICE"]


def test_relay_is_reachable_through_caddy_only(services: dict[str, Any]) -> None:
    assert "ports" not in services["relay"]
    assert services["caddy"]["environment"]["RELAY"] == "relay:3001"
    assert services["caddy"]["depends_on"] == {"relay": {"condition": "service_healthy"}}
    [network] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["networks"].values()
    subnet = network["ipam"]["config"][0]["subnet"]
    assert services["relay"]["environment"]["BREWOS_RELAY_TRUSTED_PROXIES"] == subnet


def test_only_the_relay_gets_secrets(services: dict[str, Any]) -> None:
    assert services["relay"]["env_file"] == "relay.env"
    assert "env_file" not in services["caddy"]
    assert "SECRET" not in str(services)
    example = (DEPLOY / "relay.env.example").read_text()
    assert re.findall(r"^[^#\n].*$", example, re.M) == []
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"relay.env", ".env"} <= set(ignored)


def test_relay_has_time_to_drain(services: dict[str, Any]) -> None:
    assert seconds(services["relay"]["stop_grace_period"]) > LONGEST_DRAIN_S


def test_mounted_files_exist(services: dict[str, Any]) -> None:
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    named = set(content["volumes"])
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in named or (DEPLOY / source).exists(), volume
    build = services["relay"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    assert services["relay"]["volumes"] == ["data:/data"]
    assert "DATA_DIR=/data" in DOCKERFILE


def test_other_images_have_a_tag(services: dict[str, Any]) -> None:
    assert re.fullmatch(r"caddy:\d+\.\d+\S*", services["caddy"]["image"])


def seconds(text: str | int) -> int:
    """Parse a duration in the form of compose and Fly."""
    found = re.fullmatch(r"(\d+)s", str(text))
    assert found, text
    return int(found[1])
